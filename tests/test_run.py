"""`make run` as a person sees it: what stands on stdout and stderr, the exit status, and what to type next."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit.paths import ROOT
from tests import warm
from tests.conftest import clean_environment, run_command

KEYS = (
    "model, repo_id, revision, method, device, dtype, quant, seed, prompt, text, prompt_tokens, new_tokens, token_ids, "
    "import_s, load_s, first_token_s, decode_tokens_per_s, total_s, peak_rss_bytes, device_memory_bytes, versions"
).split(", ")

ODD_PROMPTS = [
    "it's \"quoted\" 'twice'",
    "$HOME $(shell touch pwned) $$ ${PATH} `touch pwned`",
    "# not a comment",
    "back\\slash \\n \\",
    "two\nlines\n",
    "emoji 👋🏽 नमस्ते",
    "-n --help",
    "--seed=3",
    "a;b && c | d > e",
    "100% %s {}",
]


@pytest.mark.container
def test_stdout_is_the_completion_and_stderr_the_facts(make):
    done = make("run", "MAX_NEW_TOKENS=12", "DEVICE=cpu", "DTYPE=float32")
    assert done.status == 0
    assert done.out == '"\n\nThis sentence is a classic example of a rhetorical\n'
    assert "starter is SmolLM2-135M-Instruct, instruction-tuned, so not a base model" in done.err
    assert "pipeline on cpu (asked for), float32 (asked for)" in done.err
    assert "> Hello, who or what are you ?" in done.err
    facts = r"\[starter, cpu, float32\] import .* s, load .* s, first token .* s, 12 tokens at .* tokens/s, .* MB"
    assert re.search(facts, done.err)


def test_auto_says_which_device_and_why(script):
    done = script("run", "--max-new-tokens", "1")
    assert re.search(r"pipeline on (cpu|mps) \(.{10,}\), bfloat16 \(the checkpoint's own\)", done.err)


@pytest.mark.container
def test_json_is_one_document_on_one_line_with_the_agreed_keys(script):
    done = script("run", "--json", "--max-new-tokens", "3", "--method", "manual", "--seed", "7")
    assert done.out.count("\n") == 1
    document = json.loads(done.out)
    assert list(document) == KEYS
    assert (document["model"], document["method"], document["seed"], document["new_tokens"]) == (
        "starter",
        "manual",
        7,
        3,
    )
    assert (document["repo_id"], document["quant"]) == (None, None)
    assert {"python", "torch", "transformers"} <= set(document["versions"])


@pytest.mark.parametrize("make_program", ["make", "gmake"])
def test_a_prompt_arrives_unchanged_and_nothing_in_it_runs(make_program, tmp_path):
    """Through make and through the environment, in one run each: the prompts are asked for one after the other."""
    import shutil

    if not shutil.which(make_program):
        pytest.skip(f"no {make_program} on this machine")
    (tmp_path / "env").mkdir(exist_ok=True)
    shutil.copy(ROOT / "env" / "variables.txt", tmp_path / "env")
    (tmp_path / "Makefile").write_text(
        (ROOT / "Makefile").read_text().replace("@$(python) -m scripts.run", f"@{sys.executable} echo_prompt.py")
    )
    (tmp_path / "echo_prompt.py").write_text("import os, sys; sys.stdout.write(os.environ['PROMPT'])")
    (tmp_path / "env").mkdir(exist_ok=True)
    (tmp_path / "env" / "models.toml").touch()
    (tmp_path / "env" / "bootstrap.sh").touch()
    stamp = tmp_path / "models" / "starter" / ".verified.json"
    stamp.parent.mkdir(parents=True)
    stamp.touch()
    for prompt in ODD_PROMPTS:
        typed = run_command([make_program, "-s", "run", f"PROMPT={prompt}"], cwd=tmp_path)
        assert typed.out == prompt, typed.err
        exported = run_command([make_program, "-s", "run"], cwd=tmp_path, env={"PROMPT": prompt})
        assert exported.out == prompt
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.container
def test_an_odd_prompt_reaches_the_model_through_make(make):
    prompt = " ".join(ODD_PROMPTS)
    done = make("run", f"PROMPT={prompt}", "JSON=1", "MAX_NEW_TOKENS=1", "METHOD=llamacpp")
    assert json.loads(done.out)["prompt"] == prompt


@pytest.mark.parametrize("how", ["file", "stdin"])
@pytest.mark.container
def test_prompt_file_is_taken_byte_for_byte(script, tmp_path, how):
    prompt = "  leading\r\nand trailing \n\n"
    (tmp_path / "a prompt.txt").write_bytes(prompt.encode())
    name = str(tmp_path / "a prompt.txt") if how == "file" else "-"
    done = script("run", "--prompt-file", name, "--json", "--max-new-tokens", "1", stdin=prompt)
    assert json.loads(done.out)["prompt"] == prompt


WRONG = [
    (["--model", "gpt"], 2, "there is no model 'gpt'. Models: starter, llama-3.2-1b, smollm2-135m"),
    (["--method", "magic"], 2, "'magic' is not one of 'pipeline', 'manual'"),
    (["--device", "gpu"], 2, "DEVICE=gpu is unknown. Valid: auto, cpu, mps"),
    (["--device", "cuda"], 2, "CPU builds of torch"),
    (["--dtype", "int8"], 2, "DTYPE=int8 is unknown. Valid: auto, bfloat16, float16, float32"),
    (["--prompt", ""], 2, "the prompt is empty"),
    (["--max-new-tokens", "0"], 2, "0 is not in the range x>=1"),
    (["--max-new-tokens", "-5"], 2, "-5 is not in the range x>=1"),
    (["--max-new-tokens", "many"], 2, "'many' is not a whole number"),
    (["--temperature", "-1"], 2, "-1.0 is not in the range x>=0"),
    (["--temperature", "nan"], 2, "TEMPERATURE=nan: 0 is greedy decoding"),
    (["--temperature", "inf"], 2, "TEMPERATURE=inf: 0 is greedy decoding"),
    (["--temperature", "hot"], 2, "'hot' is not a number"),
    (["--seed", "x"], 2, "'x' is not a whole number"),
    (["--prompt-file", "nowhere.txt"], 2, "PROMPT_FILE=nowhere.txt cannot be read: No such file"),
    (["--prompt", "a", "--prompt-file", "-"], 2, "PROMPT and PROMPT_FILE are both given"),
    (["--quant", "q4_0"], 2, "QUANT=q4_0 is for METHOD=llamacpp; pipeline takes DTYPE"),
    (["--method", "llamacpp", "--dtype", "float32"], 2, "llamacpp takes QUANT"),
    (["--method", "llamacpp", "--quant", "q3"], 2, "QUANT=q3 is"),
    (["--method", "llamacpp", "--device", "cuda"], 2, "CPU builds of torch"),
    (["--from", "x.json"], 2, "x.json cannot be read: No such file or directory"),
    (["--model", "llama-3.2-1b"], 1, "the model llama-3.2-1b is not here yet (2.48 GB)"),
]


@pytest.mark.parametrize(("arguments", "status", "says"), WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_wrong_input_gets_what_happened_and_what_to_type(script, arguments, status, says):
    done = script("run", *arguments)
    assert done.status == status
    assert f"error: {says}" in done.err or says in done.err
    assert done.err.startswith("error:") or "\nerror:" in done.err
    assert "\n  next: " in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.parametrize(("name", "value"), [("PROMPT", ""), ("MAX_NEW_TOKENS", "0"), ("MODEL", "gpt"), ("JSON", "x")])
def test_a_wrong_variable_is_refused_like_a_wrong_option(make, name, value):
    done = make("run", f"{name}={value}")
    assert done.status == 2
    assert "error:" in done.err
    assert done.out == ""


def test_a_model_that_is_not_there_says_what_to_type_and_how_to_go_on(script):
    done = script("run", "--model", "llama-3.2-1b")
    assert "2.48 GB" in done.err
    assert "make login MODEL=llama-3.2-1b" in done.err
    assert "make download MODEL=llama-3.2-1b" in done.err
    assert "make run MODEL=starter" in done.err


def test_a_prompt_longer_than_the_context(script, tmp_path):
    (tmp_path / "long.txt").write_text("word " * 9000)
    done = script("run", "--prompt-file", str(tmp_path / "long.txt"))
    assert done.status == 2
    assert "the prompt is 9001 tokens long" in done.err
    assert "8192" in done.err


@pytest.mark.parametrize("content", [b"\xff\xfe", b""])
def test_a_prompt_file_that_is_no_text(script, tmp_path, content):
    (tmp_path / "prompt").write_bytes(content)
    done = script("run", "--prompt-file", str(tmp_path / "prompt"))
    assert done.status == 2
    assert "not UTF-8" in done.err or "prompt is empty" in done.err


def test_a_prompt_that_is_not_utf8(script):
    environment = {os.fsencode(name): os.fsencode(value) for name, value in clean_environment().items()}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.run"],
        cwd=ROOT,
        env=environment | {b"PROMPT": b"caf\xe9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "not UTF-8 text" in done.stderr


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_damaged_model_folder_is_named_with_the_repair(kit_copy, script, damage):
    """And of the repair test_starter says what comes of it."""
    path = kit_copy / "models" / "starter" / "tokenizer.json"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"hello", b"hullo"))
    done = script("run", cwd=kit_copy)
    assert done.status == 1
    assert f"models/starter/tokenizer.json is {damage}" in done.err
    assert "next: make setup" in done.err


def test_a_traceback_only_with_kit_debug(script):
    assert "Traceback" not in script("run", "--model", "gpt").err
    debug = script("run", "--model", "gpt", env={"KIT_DEBUG": "1"})
    assert "Traceback" in debug.err
    assert debug.status == 2


@pytest.mark.parametrize("locale", [{"LANG": "C"}, {"LC_ALL": "POSIX"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}])
@pytest.mark.container
def test_every_locale_gives_the_same_bytes(make, locale):
    done = make("run", "PROMPT=👋 नमस्ते", "JSON=1", "MAX_NEW_TOKENS=1", "METHOD=llamacpp", env=locale)
    assert done.status == 0, done.err
    assert json.loads(done.out)["prompt"] == "👋 नमस्ते"
    assert "👋" in done.out


def test_a_reader_that_leaves_early_ends_the_run_quietly():
    done = run_command(["sh", "-c", "make -s run METHOD=llamacpp MAX_NEW_TOKENS=400 | head -n 1"])
    assert done.out == '"\n'
    assert "Traceback" not in done.err
    assert "Broken" not in done.err
    assert "Error" not in done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("option", [[], ["--json"]])
@pytest.mark.container
def test_a_full_disk_behind_stdout_is_said(option):
    command = warm.command([sys.executable, "-m", "scripts.run", "--max-new-tokens", "1", *option], {})
    done = run_command(["sh", "-c", f"exec {shlex.join(command)} >/dev/full"])
    assert done.status == 1
    assert "error: the output could not be written" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("closed", "method", "status", "out", "says"),
    [
        (">&-", "llamacpp", 1, "", "error: the output could not be written"),
        ("2>&-", "llamacpp", 0, '"\n', ""),
        pytest.param("2>&-", "pipeline", 0, '"\n', "", marks=pytest.mark.slow),
    ],
)
@pytest.mark.container
def test_a_closed_stream_is_no_traceback(closed, method, status, out, says):
    words = f"--method {method} --max-new-tokens 1 {closed}"
    done = run_command(["sh", "-c", f"exec {sys.executable} -m scripts.run {words}"])
    assert (done.status, done.out) == (status, out)
    assert says in done.err
    assert "Traceback" not in done.err


@pytest.mark.container
def test_ctrl_c_stops_at_once_with_one_word():
    run = subprocess.Popen(
        [sys.executable, "-m", "scripts.run", "--max-new-tokens", "4000"],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever started the tests in the background had a shell that ignores it, and that is handed down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert run.stdout
    run.stdout.read(20)  # it is generating
    started = time.monotonic()
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert err.rstrip().endswith("stopped")
    assert "Traceback" not in err
    assert time.monotonic() - started < 30


def test_it_runs_from_a_path_with_spaces_and_other_letters(tmp_path, script):
    from tests.conftest import copy_kit

    folder = copy_kit(tmp_path / "the kit – Ünïcode 你好")
    (folder / "models").mkdir()
    (folder / "models" / "starter").symlink_to(ROOT / "models" / "starter")
    for method in ("pipeline", "llamacpp"):
        done = script("run", "--method", method, "--max-new-tokens", "2", cwd=folder)
        assert done.status == 0, done.err


@pytest.mark.container
def test_no_network_is_asked_for():
    """Every socket but a local one is refused inside the process; the runs do not notice."""
    program = """
import socket
def refuse(*arguments): raise RuntimeError(f"network: {arguments}")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from kit.engines import generate
from kit.engines.request import Request
from kit.models import registry
for method in ("pipeline", "manual"):
    print(generate.complete(Request(registry.find("starter"), "Hello", method, max_new_tokens=2)).new_tokens)
"""
    done = run_command([sys.executable, "-c", program])
    assert (done.status, done.out) == (0, "2\n2\n"), done.err


def test_help_shows_every_option_with_its_default_and_imports_no_torch(script):
    done = script("run", "--help", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.status == 0
    for option in ("--model", "--device", "--method", "--dtype", "--prompt-file", "--max-new-tokens", "--seed"):
        assert option in done.out
    assert "[default: starter]" in re.sub(r"\s+", " ", done.out)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.err.splitlines() if "|" in line}
    assert "click" in imported
    assert not imported & {"torch", "transformers", "numpy", "huggingface_hub"}


def test_a_prompt_from_a_standard_input_that_is_closed(script):
    done = run_command(["sh", "-c", f"exec {sys.executable} -m scripts.run --prompt-file - <&-"])
    assert done.status == 2
    assert "PROMPT_FILE=- reads standard input, and that is closed" in done.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.container
def test_a_signal_that_ends_a_run_leaves_nothing_behind(number, tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-m", "scripts.run", "--method", "llamacpp", "--max-new-tokens", "4000"],
        cwd=ROOT,
        env=clean_environment() | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert run.stdout
    run.stdout.read(20)  # it is generating
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 128 + number
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
