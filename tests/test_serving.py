"""`make serve`: who may ask, what is answered, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from kit.environment import machine
from kit.errors import KitError, WrongUsage
from kit.models import registry
from kit.paths import ROOT
from kit.serve import serve as serving
from tests.conftest import clean_environment

KEY = "a-key-of-the-tests-0123456789"
PROMPT = "The capital of France is"


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str
    lines: list[str]

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def ask(self, path: str, body: object = None, key: str = KEY, **headers: str) -> tuple[int, dict[str, str], bytes]:
        with contextlib.closing(http.client.HTTPConnection(self.host, timeout=120)) as connection:
            headers = {**headers, **({"Authorization": f"Bearer {key}"} if key else {})}
            content = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, content, headers)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def answer(self, path: str, body: object = None) -> dict:
        status, _, content = self.ask(path, body)
        assert status == 200, content
        return json.loads(content)

    def stop(self, how: int = signal.SIGTERM) -> str:
        self.process.send_signal(how)
        return self.process.communicate(timeout=30)[1]


def start(*words: str, folder: Path = ROOT, **env: str) -> Served:
    """`make serve` with the words behind it, at a port of its own."""
    given = dict(word.split("=", 1) for word in words)
    variables = clean_environment() | {"PORT": "0", "SERVE_KEY": KEY, "KIT_TYPED": " ".join(given), **given, **env}
    command = [sys.executable, "-m", "scripts.serve"]
    process = subprocess.Popen(
        command, cwd=folder, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    lines = [process.stdout.readline().rstrip("\n") for _ in range(3)]
    if not lines[2]:
        raise AssertionError(process.communicate()[1])
    return Served(process, lines[0].partition("/#")[0], lines)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    running = start("SLOTS=2", "CONTEXT=512")
    yield running
    if running.process.poll() is None:
        running.stop()


def greedy(tokens: int = 8, **more: object) -> dict[str, object]:
    return {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, **more}


# --- What is said at its start ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_line_is_the_pages_address_with_the_key_and_the_page_needs_none(served):
    assert re.fullmatch(rf"http://127\.0\.0\.1:\d+/#key={KEY}", served.lines[0])
    status, headers, content = served.ask("/", key="")
    assert (status, headers["content-type"]) == (200, "text/html")
    assert content == (serving.PAGE / "index.html").read_bytes()


@pytest.mark.slow
def test_the_second_line_can_be_pasted_and_holds_no_key(served):
    assert KEY not in served.lines[1]
    done = subprocess.run(["sh", "-c", served.lines[1]], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["text"].startswith(" Paris.")


@pytest.mark.slow
def test_the_third_line_is_what_openais_client_reads(served):
    assert KEY not in served.lines[2]
    asked = "from openai import OpenAI; c = OpenAI()\n"
    asked += f"m = c.models.list().data[0].id; print(m, c.completions.create(model=m, prompt={PROMPT!r}, max_tokens=2)"
    asked += ".choices[0].text)"
    shell = f'{served.lines[2]}\n"$0" -c "$1"'
    done = subprocess.run(["sh", "-c", shell, sys.executable, asked], capture_output=True, text=True, check=False)
    assert done.stdout == "starter  Paris.\n", done.stderr


@pytest.mark.slow
def test_the_header_lies_in_a_file_of_its_owner(served):
    path = ROOT / f".serve-{served.host.partition(':')[2]}.header"
    assert path.read_text() == f"Authorization: Bearer {KEY}\n"
    assert path.stat().st_mode & 0o777 == 0o600


# --- Who may ask ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("key", ["", "another-key-0123456789"])
@pytest.mark.parametrize("path", ["/v1/models", "/props", "/slots", "/lora-adapters", "/tokenize"])
def test_nobody_without_the_key_gets_an_answer(served, path, key):
    assert served.ask(path, key=key)[0] == 401


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1"])
def test_no_foreign_origin_may_read_an_answer(served, origin):
    for method, path in (("GET", "/v1/models"), ("OPTIONS", "/completion"), ("GET", "/")):
        with contextlib.closing(http.client.HTTPConnection(served.host)) as connection:
            connection.request(method, path, headers={"Origin": origin, "Authorization": f"Bearer {KEY}"})
            allowed = connection.getresponse().getheader("Access-Control-Allow-Origin")
        assert allowed not in (origin, "*")


@pytest.mark.slow
def test_only_loopback_unless_listen_is_typed(served):
    port = int(served.host.partition(":")[2])
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.2", port), timeout=2):
        pass
    running = start(LISTEN="127.0.0.3")  # in the environment it does not count
    try:
        assert running.url.startswith("http://127.0.0.1:")
    finally:
        running.stop()


@pytest.mark.slow
def test_neither_prompt_nor_key_stands_in_arguments_or_on_stderr():
    running = start()
    running.answer("/v1/completions", greedy(prompt="A secret that nobody logs"))
    arguments = Path(f"/proc/{running.process.pid}/cmdline")
    assert not arguments.exists() or KEY.encode() not in arguments.read_bytes()
    said = running.stop()
    assert "secret" not in said
    assert KEY not in said


# --- What is answered -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_with_one_slot_the_greedy_tokens_are_those_of_a_run(script):
    running = start()
    try:
        asked = {"prompt": PROMPT, "n_predict": 30, "return_tokens": True, "temperature": 0}
        tokens = running.answer("/completion", asked)["tokens"]
        text = running.answer("/v1/completions", greedy(30))["choices"][0]["text"]
        drawn = [running.answer("/completion", {**asked, "temperature": 0.9, "seed": 7})["tokens"] for _ in range(2)]
    finally:
        running.stop()
    run = json.loads(script("run", "--json", "--method", "llamacpp", "--prompt", PROMPT, "--max-new-tokens", "30").out)
    assert (tokens, text) == (run["token_ids"], run["text"])
    assert drawn[0] == drawn[1] != tokens


@pytest.mark.slow
def test_the_model_is_known_by_its_name_and_no_path_of_the_machine_is_told(served):
    assert [one["id"] for one in served.answer("/v1/models")["data"]] == ["starter"]
    props = served.answer("/props")
    assert str(ROOT) not in json.dumps(props)
    assert props["ui_settings"]["model"] == "starter"
    assert {slot["n_ctx"] for slot in served.answer("/slots")} == {512}


@pytest.mark.slow
def test_what_is_not_said_is_as_in_a_run(served):
    """Greedy, and of the whole distribution: none of llama.cpp's own samplers."""
    said = served.answer("/completion", {"prompt": PROMPT, "n_predict": 1})["generation_settings"]
    assert {name: said[name] for name in ("temperature", "top_k", "top_p", "min_p")} == {
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
    }


@pytest.mark.slow
def test_a_prompt_that_is_too_long_is_refused_with_a_sentence(served):
    status, _, content = served.ask("/v1/completions", greedy(prompt=[5] * 600))
    assert (status, b"request (600 tokens) exceeds the available context size (512 tokens)" in content) == (400, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body"),
    [("/infill", {"input_prefix": "a"}), ("/v1/embeddings", {"input": "a"}), ("/props", {"a": 1}), ("/tools", {})],
)
def test_what_is_refused_is_refused(served, path, body):
    assert served.ask(path, body)[0] in (403, 404, 501)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/health", None),
        ("/lora-adapters", None),
        ("/detokenize", {"tokens": [504]}),
        ("/apply-template", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses", {"model": "starter", "input": "a", "max_output_tokens": 2}),
        ("/v1/messages", {"model": "starter", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}),
    ],
)
def test_what_works_works(served, path, body):
    assert served.ask(path, body)[0] == 200


@pytest.mark.slow
def test_openais_client_completes_streams_and_chats(served):
    from openai import BadRequestError, OpenAI

    client = OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0)
    whole = client.completions.create(model="starter", prompt=PROMPT, max_tokens=8, temperature=0)
    pieces = client.completions.create(model="starter", prompt=PROMPT, max_tokens=8, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5, 8)
    ids = client.completions.create(model="starter", prompt=[504, 3575, 282, 4649, 314], max_tokens=8, temperature=0)
    assert ids.choices[0].text == whole.choices[0].text
    stopped = client.completions.create(model="starter", prompt=PROMPT, max_tokens=8, temperature=0, stop=["."])
    assert stopped.choices[0].text == " Paris"
    echo = client.completions.create(model="starter", prompt=PROMPT, max_tokens=1, temperature=0, echo=True)
    assert echo.choices[0].text == " Paris"  # ignored
    probable = client.completions.create(model="starter", prompt=PROMPT, max_tokens=1, temperature=0, logprobs=3)
    logprobs = probable.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is None
    assert len(logprobs.model_dump()["content"][0]["top_logprobs"]) == 3
    messages = [{"role": "user", "content": "Say hello."}]
    chat = client.chat.completions.create(model="x", messages=messages, max_tokens=5, temperature=0)  # type: ignore[arg-type]
    assert chat.choices[0].message.content
    assert chat.model == "starter"  # whatever was named
    with pytest.raises(BadRequestError, match="between 1 <= value <= 2"):
        client.completions.create(model="starter", prompt=PROMPT, max_tokens=1, n=3)


# --- Many, and those that do not behave -------------------------------------------------------------------------------


@pytest.mark.slow
def test_thirty_at_once_are_all_answered_and_none_twice(served):
    def one(number: int) -> tuple[int, str]:
        asked = greedy(10, prompt=f"Number {number} is")
        return number, served.answer("/v1/completions", asked)["choices"][0]["text"]

    with ThreadPoolExecutor(30) as pool:
        answers = dict(pool.map(one, range(30)))
    assert len(answers) == 30
    assert all(answers.values())


@pytest.mark.slow
def test_slots_tell_that_others_ask_and_not_what(served):
    served.answer("/v1/completions", greedy(prompt="Nobody reads this over my shoulder"))
    assert "shoulder" not in json.dumps(served.answer("/slots"))


def busy(served: Served) -> int:
    return sum(slot["is_processing"] for slot in served.answer("/slots"))


@pytest.mark.slow
def test_a_client_that_goes_away_frees_its_slot(served):
    body = json.dumps({"prompt": PROMPT, "n_predict": 400, "stream": True, "ignore_eos": True}).encode()
    head = f"POST /completion HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    host, _, port = served.host.partition(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + body)
        client.recv(4096)
        assert busy(served)
    # Of four hundred tokens it has made a few: it is free long before it would be done by itself.
    end = time.monotonic() + 60
    while busy(served):
        assert time.monotonic() < end
        time.sleep(0.05)
    generated = [slot["next_token"] for slot in served.answer("/slots") if slot.get("next_token")]
    counts = [one[0]["n_decoded"] if isinstance(one, list) else one["n_decoded"] for one in generated]
    assert all(count < 400 for count in counts)


@pytest.mark.slow
def test_sixty_half_sent_requests_delay_nobody(served):
    host, _, port = served.host.partition(":")
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            client = stack.enter_context(socket.create_connection((host, int(port))))
            client.sendall(b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Le")
        with contextlib.closing(http.client.HTTPConnection(served.host, timeout=5)) as connection:
            connection.request("GET", "/health")  # not among those that wait for ten seconds
            assert connection.getresponse().status == 200


# --- Its end ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_at_once_in_the_middle_of_an_answer_and_leaves_nothing(how, tmp_path):
    running = start(TMPDIR=str(tmp_path))
    header = ROOT / f".serve-{running.host.partition(':')[2]}.header"
    assert header.exists()

    def ask() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            running.ask("/completion", {"prompt": PROMPT, "n_predict": 3000, "ignore_eos": True})

    asking = threading.Thread(target=ask)
    asking.start()
    while not busy(running):
        time.sleep(0.01)
    assert "stopped" in running.stop(how)
    assert running.process.returncode == 0
    asking.join()
    assert not header.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_through_llamacpp_that_is_killed_leaves_no_temporary_folder(tmp_path):
    asked = {"METHOD": "llamacpp", "MAX_NEW_TOKENS": "3000", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "scripts.run"]
    process = subprocess.Popen(command, cwd=ROOT, env=clean_environment() | asked, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.read(10)
    process.kill()
    process.communicate()
    assert list(tmp_path.iterdir()) == []


# --- What cannot be served --------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_named_with_another(script):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = script("serve", "--port", str(port))
    assert done.status == 1
    assert f"nothing can listen on 127.0.0.1:{port}: Address already in use." in done.err
    assert "next: another port: make serve PORT=" in done.err


@pytest.mark.parametrize("key", ["short", "with a blank in the middle", "ein-Schlüssel-mit-Umlaut"])
def test_a_key_that_an_address_would_not_hold_is_refused_and_not_repeated(monkeypatch, key):
    monkeypatch.setenv("SERVE_KEY", key)
    with pytest.raises(WrongUsage) as error:
        serving.key()
    assert key not in str(error.value)


def test_a_key_is_made_anew_at_each_start_where_none_is_set(monkeypatch):
    monkeypatch.delenv("SERVE_KEY", raising=False)
    assert len({serving.key() for _ in range(9)}) == 9


def test_too_little_memory_for_the_slots_is_said_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(serving.memory, "free_memory", lambda here: 600_000_000)
    fits = serving.prepare(registry.find("starter"), "cpu", "auto", 1, 512, machine.this())
    assert (fits.slots, fits.context) == (1, 512)
    with pytest.raises(KitError, match=r"starter with 16 slots of 4096 tokens needs \d\.\d\d GB"):
        serving.prepare(registry.find("starter"), "cpu", "auto", 16, 4096, machine.this())


@pytest.mark.parametrize(("asked", "context"), [(None, 4096), (1, 256), (256, 256), (257, 512), (8192, 8192)])
def test_a_context_is_a_slots_own_and_rounded_up_to_what_llamacpp_has(monkeypatch, asked, context):
    monkeypatch.setattr(serving.memory, "free_memory", lambda here: None)
    ready = serving.prepare(registry.find("starter"), "cpu", "auto", 2, asked, machine.this())
    assert ready.context == context


def test_a_context_that_the_model_has_not_is_refused(script):
    done = script("serve", "--context", "9000")
    assert done.status == 2
    assert "CONTEXT=9000: the context of starter holds 8192 tokens." in done.err


def test_a_header_file_of_one_that_was_killed_is_replaced(tmp_path):
    old = tmp_path / ".serve-1.header"
    old.write_text("old")
    old.chmod(0o644)
    with serving.header_file(tmp_path, 1, "new") as path:
        assert path.read_text() == "Authorization: Bearer new\n"
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


def test_a_room_sees_the_address_as_a_qr_code_and_reads_who_can_use_it(monkeypatch, capsys):
    from scripts import serve

    serve.say_room("http://192.168.1.10:8080", KEY)
    plain = capsys.readouterr()
    assert plain.out == ""  # in a pipe, a picture is noise
    assert "the key travels readable (plain http)" in plain.err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    serve.say_room("http://192.168.1.10:8080", KEY)
    rows = [row for row in capsys.readouterr().out.splitlines() if set(row) & set("█▀▄")]
    assert len(rows) > 15


def test_an_address_that_is_typed_in_a_browser():
    assert serving.url("127.0.0.1", 1) == "http://127.0.0.1:1"
    assert serving.url("::1", 1) == "http://[::1]:1"
    assert "0.0.0.0" not in serving.url("0.0.0.0", 1)


def test_of_a_llama_the_page_is_told_what_its_licence_asks_to_show(monkeypatch):
    from dataclasses import replace

    ready = serving.prepare(registry.find("starter"), "cpu", "auto", 1, 256, machine.this())
    assert serving.about(ready)["shown"] == ""
    llama = registry.find("llama-3.2-1b")
    monkeypatch.setattr(ready.engine, "model", replace(llama, name="llama-3.2-1b"))
    said = serving.about(ready)
    assert said["shown"] == "Built with Llama"
    assert "models/llama-3.2-1b/LICENSE.txt" in said["licence_files"]
