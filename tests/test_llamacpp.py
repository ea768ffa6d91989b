"""METHOD=llamacpp: the real llama.cpp on the starter's own GGUF, up to the boundary of the GPU."""

from __future__ import annotations

import dataclasses
import http.client
import json
import subprocess
import sys
from contextlib import closing

import pytest

from kit.engines import generate, llama_server
from kit.engines.llama_server import LlamaServer
from kit.engines.llamacpp_engine import LlamacppEngine
from kit.engines.request import Request
from kit.environment import machine
from kit.environment.machine import Machine
from kit.errors import KitError, WrongUsage
from kit.models import examine, registry
from kit.paths import ROOT

MARK = "The capital of France is"
MANY_SCRIPTS = "😀😃😄😁 नमस्ते दुनिया สวัสดี 😀😃😄😁 नमस्ते दुनिया 😀😃😄"


@pytest.fixture
def complete(starter):
    def call(prompt=MARK, on_text=lambda text: None, **fields):
        asked = {"method": "llamacpp", "max_new_tokens": 12, **fields}
        return generate.complete(Request(starter, prompt, **asked), on_text)

    return call


@pytest.fixture
def server(starter):
    with closing(LlamaServer(starter.folder / "starter-q4_1.gguf", "cpu", 200)) as running:
        yield running


# --- The same verb ----------------------------------------------------------------------------------------------------


def test_a_run_imports_neither_torch_nor_transformers():
    program = (
        "import sys; from kit.engines import generate; from kit.models import registry; "
        "from kit.engines.request import Request; "
        "generate.complete(Request(registry.find('starter'), 'One', 'llamacpp', max_new_tokens=2)); "
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_json_has_the_keys_of_every_method_and_names_the_quant(script):
    done = script("run", "--method", "llamacpp", "--max-new-tokens", "3", "--json")
    said = json.loads(done.out)
    other = json.loads(script("run", "--method", "manual", "--max-new-tokens", "3", "--json").out)
    assert list(said) == list(other)
    assert (said["method"], said["device"], said["dtype"], said["quant"]) == ("llamacpp", "cpu", None, "q4_1")
    assert (other["dtype"], other["quant"]) == ("bfloat16", None)
    assert set(said["versions"]) == {"python", "xllamacpp", "tokenizers"}
    assert said["import_s"] + said["load_s"] + said["first_token_s"] < said["total_s"]


def test_llama_cpps_own_log_stays_out_of_the_output(script):
    done = script("run", "--method", "llamacpp", "--max-new-tokens", "3")
    assert done.status == 0
    lines = done.err.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("llamacpp on cpu (")
    assert lines[1].endswith("q4_1 (as shipped) …")
    assert lines[3].startswith("[starter, cpu, q4_1] import 0.")
    assert done.out.strip()


@pytest.mark.parametrize("prompt", [[1], [4], [18], [32], [1, 4]])
def test_the_saved_ids_are_those_behind_a_prompt_of_any_length(server, prompt):
    """Short prompts look like the numbers in front of the saved tokens: their count, a version, a mark."""
    for count in (2, 18, 32) if prompt == [32] else (2, 18):
        came = [chunk.token_id for chunk in server.generate(prompt, count, ignore_eos=True)]
        assert None not in came
        # The last token is saved when it has been worked on, with the next one.
        assert server.ids_after(prompt) == came[:-1]
    assert not server._slots.exists()


def test_the_prompt_arrives_as_the_model_folders_tokenizer_reads_it(starter, server):
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(starter.folder / "tokenizer.json")).encode(MARK).ids
    said = server.post("/completion", {"prompt": ids, "n_predict": 1})
    assert said["tokens_evaluated"] == len(ids)
    assert said["prompt"] == MARK


def test_characters_of_several_tokens_lose_none_of_them(complete, starter):
    """llama.cpp hands over a finished character with its last token alone."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(starter.folder / "tokenizer.json"))
    pieces: list[str] = []
    drawn = complete(MANY_SCRIPTS, pieces.append, max_new_tokens=24, temperature=1.5, seed=3)
    greedy = complete("नमस्ते दुनिया, आप कैसे हैं? मैं", max_new_tokens=12)
    for completion in (drawn, greedy):
        assert completion.new_tokens == 24 if completion is drawn else 12
        assert tokenizer.decode(completion.token_ids) == completion.text
    assert "".join(pieces) == drawn.text
    # The first two tokens of an emoji that has three.
    cut = complete(MANY_SCRIPTS, max_new_tokens=2)
    assert len(cut.token_ids) == 2
    assert cut.text == "\ufffd"
    assert complete(MANY_SCRIPTS, max_new_tokens=3).token_ids[:2] == cut.token_ids


def test_a_text_ends_where_the_models_own_settings_end_it(complete, monkeypatch):
    """llama.cpp ends at more tokens than those; the run goes on behind them."""
    chat = "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n"
    ended = complete(chat, max_new_tokens=40)
    assert ended.token_ids[-1] == 2
    endless = dataclasses.replace(examine.examination(registry.find("starter")), ends=())
    monkeypatch.setattr(examine, "examination", lambda model: endless)
    further = complete(chat, max_new_tokens=40)
    assert further.new_tokens == 40
    assert further.token_ids[: ended.new_tokens] == ended.token_ids


def test_a_prompt_that_does_not_fit_is_refused(complete):
    with pytest.raises(WrongUsage, match="do not fit into the context of starter"):
        complete(max_new_tokens=9000)


def test_a_number_format_in_dotenv_is_for_the_methods_that_have_it(tmp_path, script):
    (tmp_path / ".env").write_text("DTYPE=float32\nQUANT=q8_0\nMAX_NEW_TOKENS=2\n")
    env = {"KIT_DOTENV": str(tmp_path / ".env")}
    done = script("run", "--method", "llamacpp", "--quant", "q4_1", env=env)
    assert done.status == 0, done.err
    done = script("run", "--method", "manual", env=env)
    assert done.status == 0, done.err
    assert "float32 (asked for)" in done.err


def test_a_run_can_be_written_down_and_repeated(kit_copy, script):
    options = ["--method", "llamacpp", "--max-new-tokens", "5", "--record"]
    assert script("run", *options, cwd=kit_copy).status == 0
    (report,) = (kit_copy / "reports").glob("run-*.json")
    said = json.loads(report.read_text())
    assert said["request"]["quant"] == "auto"
    assert said["facts"]["llamacpp"]["threads"] >= 1
    again = script("run", "--from", f"reports/{report.name}", cwd=kit_copy)
    assert again.status == 0, again.err
    assert "the same 5 tokens as in the record" in again.err


# --- What really ran --------------------------------------------------------------------------------------------------

# Lines of llama.cpp's log, with the names that its Metal backend has [read, not run].
METAL = """
0.00.1 I cmn  common_param: system_info: n_threads = 4 (n_threads_batch = 4) / 8 | MTL : BF16 = 1 | CPU : NEON = 1 |
0.00.2 I load_tensors: offloading output layer to GPU
0.00.2 I load_tensors: offloaded {layers} layers to GPU
0.00.2 I load_tensors:   CPU_Mapped model buffer size =   100.00 MiB
0.00.2 I load_tensors:  MTL0_Mapped model buffer size =  {size} MiB
0.00.2 I llama_kv_cache:       {cache} KV buffer size =    16.00 MiB
0.00.2 I sched_reserve:       MTL0 compute buffer size =    4.00 MiB
"""


def test_what_ran_is_read_from_llama_cpps_log(server):
    assert server.ran.device == "cpu"
    assert server.ran.threads == machine.performance().count
    assert server.ran.gpu_bytes is None


@pytest.mark.parametrize(
    ("fields", "device"),
    [
        ({"layers": "17/17", "size": "2300.50", "cache": "MTL0"}, "mps"),
        ({"layers": "9/17", "size": "1100.00", "cache": "MTL0"}, "a part of both"),
        ({"layers": "0/17", "size": "0.00", "cache": "CPU"}, "cpu"),
    ],
)
def test_the_log_of_a_gpu_tells_whether_all_of_it_ran_there(fields, device):
    ran = llama_server.read_log(METAL.format(**fields))
    assert ran.device == device
    assert ran.threads == 4
    if device == "mps":
        assert ran.gpu_bytes == int((2300.5 + 16 + 4) * 2**20)


def test_a_log_that_does_not_say_is_an_error():
    with pytest.raises(KitError, match="does not say what ran"):
        llama_server.read_log("nothing")


def test_something_else_than_asked_for_is_an_error(starter):
    """This machine has no Metal: what is asked for it runs on the CPU, and that is told."""
    with pytest.raises(KitError, match="was asked for mps and took cpu"):
        LlamaServer(starter.folder / "starter-q4_1.gguf", "mps", 100)


def test_nothing_is_left_to_llama_cpp_to_adjust(starter, monkeypatch):
    """What is asked of it, at its boundary."""
    asked = []
    monkeypatch.setattr(LlamaServer, "generate", None)
    real = LlamaServer._parameters
    monkeypatch.setattr(LlamaServer, "_parameters", lambda *a: asked.append(real(*a)) or asked[0])
    with closing(LlamaServer(starter.folder / "starter-q4_1.gguf", "cpu", 300)):
        pass
    (given,) = asked
    assert given.fit_params is False
    assert given.ctx_shift is False
    assert given.warmup is False
    assert given.n_gpu_layers == 0
    assert given.no_op_offload is True
    assert given.no_kv_offload is True
    assert given.n_ctx == 512
    assert given.cpuparams.n_threads == given.cpuparams_batch.n_threads == machine.performance().count
    assert len(given.api_keys[0]) == 32


@pytest.mark.parametrize("found", [True, False])
def test_auto_takes_the_gpu_where_llama_cpp_finds_metal(found, starter, monkeypatch):
    monkeypatch.setattr(machine, "this", lambda: Machine("Darwin", "arm64", "15.3"))
    names = ["MTL0", "CPU"] if found else ["CPU"]
    library = type("Stand-in", (), {"get_device_info": staticmethod(lambda: [{"name": name} for name in names])})
    monkeypatch.setattr(llama_server, "import_library", lambda: library)
    chosen = LlamacppEngine(starter).device
    assert chosen.name == ("mps" if found else "cpu")
    assert chosen.number_format == "q4_1"
    assert ("llama.cpp finds no Metal device" in chosen.reason) is not found


# --- The port that it opens -------------------------------------------------------------------------------------------


@pytest.mark.container
def test_the_port_is_on_loopback_refuses_who_has_no_key_and_dies_with_the_run(server):
    host, port = server._address.split(":")
    assert host == "127.0.0.1"

    def status(key: str) -> int:
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("POST", "/completion", '{"prompt": [1], "n_predict": 1}', {"Authorization": f"Bearer {key}"})
        return connection.getresponse().status

    assert status("wrong") == 401
    assert status(server._key) == 200
    server.close()
    with pytest.raises(ConnectionRefusedError):
        status(server._key)


def test_each_run_has_a_key_of_its_own(server, starter):
    with closing(LlamaServer(starter.folder / "starter-q4_1.gguf", "cpu", 100)) as other:
        assert other._key != server._key


# --- Bad luck ---------------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_gguf_says_so(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUX" * 100)
    with pytest.raises(KitError, match=r"could not load broken.gguf: .*invalid magic"):
        LlamaServer(tmp_path / "broken.gguf", "cpu", 100)


def test_standard_error_is_itself_again_after_a_failure(tmp_path, capfd):
    (tmp_path / "broken.gguf").write_bytes(b"GGUX" * 100)
    with pytest.raises(KitError):
        LlamaServer(tmp_path / "broken.gguf", "cpu", 100)
    subprocess.run(["sh", "-c", "echo heard >&2"], check=True)
    assert capfd.readouterr().err == "heard\n"


def test_while_native_code_is_kept_aside_pythons_own_lines_come_through():
    program = (
        "import os, sys; from kit.engines.llama_server import NativeLog; log = NativeLog().start(); "
        "os.write(2, b'native'); print('own', file=sys.stderr); kept = log.text(); log.close(); "
        "print(kept); print('after', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("native\n", "own\nafter\n")
    assert llama_server.NativeLog().text() == ""


def test_a_container_that_is_too_small_is_told_before_it_is_killed(complete, monkeypatch):
    small = Machine("Linux", "x86_64", container=True, memory=300_000_000)
    monkeypatch.setattr(machine, "this", lambda: small)
    with pytest.raises(KitError, match=r"starter in q4_1 needs 0\.35 GB of memory, and this container has 0\.30 GB"):
        complete()


def test_a_reader_that_goes_away_ends_the_run():
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m scripts.run --method llamacpp --max-new-tokens 2000 | head -c 5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert len(done.stdout) == 5
    assert "rror" not in done.stderr
