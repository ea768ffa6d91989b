"""`make batch`: every line answered once, whatever ends it, and nothing mixed."""

from __future__ import annotations

import errno
import http.client
import io
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit import files
from kit.batch import answers, batch, prompts
from kit.batch.answers import Answers
from kit.batch.prompts import Extent, Line
from kit.engines import generate, methods
from kit.engines.engine import Generated
from kit.engines.request import Request
from kit.errors import Command, KitError, WrongUsage
from kit.models import registry
from kit.paths import ROOT
from tests.conftest import clean_environment

TYPED = Command("batch", IN="prompts.jsonl", OUT="answers.jsonl")
SETTINGS = "5e" * 32
TEXTS = ["The capital of France is", "Once upon a time in the west", "Two and two", "A recipe:"]


@pytest.fixture
def asked() -> Request:
    return Request(registry.find("starter"), " ", "llamacpp", max_new_tokens=7, temperature=0.5, seed=3)


@pytest.fixture
def written(tmp_path: Path):
    """A file with these lines: objects as JSON, and text and bytes as they are."""

    def write(*lines: object, name: str = "prompts.jsonl") -> Path:
        raw = [line if isinstance(line, str | bytes) else json.dumps(line) for line in lines]
        path = tmp_path / name
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in raw))
        return path

    return write


def batch_line(custom_id: str = "one", **body: object) -> dict[str, object]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


def said(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def text(answer: dict) -> str:
    return answer["response"]["body"]["choices"][0]["text"]


# --- IN ---------------------------------------------------------------------------------------------------------------


def test_openais_form_and_the_short_one_ask_for_the_same(written, asked):
    openai = batch_line("a", model="starter", prompt="Once", max_tokens=5, temperature=0, seed=9, n=1, stream=False)
    short = {"id": "a", "prompt": "Once", "max_new_tokens": 5, "temperature": 0, "seed": 9}
    one, other = prompts.read(written(openai, short), asked)
    assert one.request == other.request
    assert one.custom_id == other.custom_id == "a"
    assert (one.request.prompt, one.request.max_new_tokens) == ("Once", 5)
    assert (one.request.temperature, one.request.seed, one.request.method) == (0, 9, "llamacpp")


def test_what_a_line_does_not_say_comes_from_the_command(written, asked):
    (line,) = prompts.read(written({"prompt": "Once"}), asked)
    assert (line.request.max_new_tokens, line.request.temperature, line.request.seed) == (7, 0.5, 3)


def test_a_text_has_a_prompt_a_line_and_blank_lines_are_none(written, asked):
    path = written(b"\xef\xbb\xbfOnce", "", '{"prompt": 1}\r', "  ", "Twice ", name="prompts.txt")
    lines = list(prompts.read(path, asked))
    assert [(line.number, line.request.prompt) for line in lines] == [(1, "Once"), (3, '{"prompt": 1}'), (5, "Twice ")]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", r"the line is not JSON: .* \(character 2\)"),
        ("[1]", "the line is JSON, and no object"),
        ("[" * 100_000, "the line is not JSON that can be read"),
        (b"\xff", r"the line is not UTF-8 text \(byte 0\)"),
        ({"id": "a"}, "there is no prompt"),
        ({"prompt": ""}, "there is no prompt"),
        ({"prompt": ["a", "b"]}, "the prompt is no text"),
        ({"prompt": "\ud800"}, "half a character"),
        ({"prompt": "a", "max_tokens": 0}, r"max_tokens = 0: a whole number from 1 on"),
        ({"prompt": "a", "max_tokens": True}, r"max_tokens = true: a whole number from 1 on"),
        ({"prompt": "a", "temperature": -1}, r"temperature = -1: a number from 0 on"),
        ('{"prompt": "a", "temperature": NaN}', r"temperature = NaN: a number from 0 on"),
        ({"prompt": "a", "seed": 1.5}, r"seed = 1.5: a whole number from 0 on"),
        ({"prompt": "a", "top_p": 0.9}, r"top_p = 0.9 is not taken"),
        ({"prompt": "a", "n": 2}, r"n = 2 is not taken"),
        ({"prompt": "a", "id": []}, "the id is neither text nor a number"),
        (batch_line(prompt="a", model="gpt-4"), "asks for the model gpt-4, and this batch is of starter"),
        ({**batch_line(prompt="a"), "url": "/v1/chat/completions"}, "POST /v1/completions alone is taken"),
        ({**batch_line(prompt="a"), "body": 1}, "body is no object"),
        ({**batch_line(prompt="a"), "prompt": "b"}, "prompt: not among body, custom_id, method, url"),
    ],
)
def test_a_line_that_cannot_be_asked_says_why_and_the_next_one_is_read(written, asked, line, why):
    bad, good = prompts.read(written(line, {"prompt": "Once"}), asked)
    assert bad.request is None
    assert re.search(why, bad.error)
    assert good.request.prompt == "Once"


def test_a_line_without_end_is_not_read_into_memory(written, asked, monkeypatch):
    monkeypatch.setattr(prompts, "LONGEST", 100)
    path = written({"prompt": "a" * 1000}, {"prompt": "Once"})
    long, good = prompts.read(path, asked)
    assert "the line has more than" in long.error
    assert (good.number, good.request.prompt) == (2, "Once")
    assert prompts.look_through(path, asked, files.silent, words_in).sha256 == files.sha256(path)


def test_a_look_through_counts_and_finds_the_longest(written, asked):
    path = written({"prompt": "é" * 10, "max_tokens": 5}, "", "{", {"prompt": "a"})
    extent = prompts.look_through(path, asked, files.silent, words_in)
    assert extent == Extent(files.sha256(path), 3, 4, 20 + prompts.SPECIAL + 5)


def test_what_does_not_fit_has_no_room_kept_for_it_and_what_is_long_has_no_more_than_its_tokens(written, asked):
    """Else one line that fails would take the whole context's memory for each slot, or be refused with all others."""
    path = written({"prompt": "Once", "max_tokens": 10**9}, {"prompt": "word " * 9000}, {"prompt": "a"})
    assert prompts.look_through(path, asked, files.silent, words_in).longest == 1 + prompts.SPECIAL + 7
    path = written({"prompt": "word " * 500})
    assert prompts.look_through(path, asked, files.silent, words_in).longest == 500 + 7


def words_in(request: Request) -> list[str]:
    """In place of an engine's fit."""
    if len(request.prompt.split()) + request.max_new_tokens > 8192:
        raise KitError("it does not fit")
    return request.prompt.split()


def test_in_that_is_no_file_or_has_no_prompt_says_so(written, asked, tmp_path):
    for path, why in (
        (tmp_path, "is a folder"),
        (tmp_path / "none", "is not there"),
        (Path("/dev/null"), "is no file"),
    ):
        with pytest.raises(WrongUsage, match=why):
            prompts.look_through(path, asked, files.silent, words_in)
    with pytest.raises(WrongUsage, match="has no prompt in it"):
        prompts.look_through(written("", "  "), asked, files.silent, words_in)


# --- OUT --------------------------------------------------------------------------------------------------------------


def lines_of(asked: Request, count: int) -> list[Line]:
    return [Line(number, f"id {number}", asked) for number in range(1, count + 1)]


def came(*ids: int) -> Generated:
    return Generated([1, 2, 3], list(ids), "text", 0.0, 1, 0.0)


EXTENT = Extent("1a" * 32, 4, 4, 20)


@pytest.fixture
def out(tmp_path: Path):
    """OUT, opened for the same batch again and again."""
    path = tmp_path / "answers.jsonl"
    return lambda extent=EXTENT, settings=SETTINGS: answers.opened(path, extent, settings, TYPED)


@pytest.fixture
def three(out, asked, tmp_path) -> Path:
    """OUT with the answers to three of four lines, the second an error."""
    with out() as there:
        for line, what in zip(lines_of(asked, 3), (came(4, 0), "it is too long", came(5, 6)), strict=True):
            there.write(line, what, (0,))
    return tmp_path / "answers.jsonl"


def test_answers_have_the_form_of_openais_batches(three):
    first, second, third = said(three)
    assert set(first) == {"id", "custom_id", "response", "error"}
    assert first["custom_id"] == "id 1"
    assert first["error"] is None
    assert first["response"]["status_code"] == 200
    body = first["response"]["body"]
    assert body["object"] == "text_completion"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert third["response"]["body"]["choices"][0]["finish_reason"] == "length"
    assert second["response"] is None
    assert second["error"] == {"code": "invalid_request", "message": "line 2: it is too long"}


def test_a_batch_that_was_ended_goes_on_with_what_is_missing(out, three):
    with out() as there:
        assert [there.has(number) for number in (1, 2, 3, 4)] == [True, True, True, False]
        assert (there.count.done, there.count.failed, there.count.tokens) == (3, 1, 4)
        assert there.count.first_error == "line 2: it is too long"


def test_a_last_line_that_was_torn_anywhere_is_answered_again(out, three, asked):
    whole = three.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(last, len(whole)):
        three.write_bytes(whole[:end])
        with out() as there:
            assert not there.has(3)
            there.write(lines_of(asked, 3)[2], came(5, 6), (0,))
        assert [each["id"] for each in said(three)] == [each["id"] for each in map(json.loads, whole.splitlines())]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"extent": Extent("2b" * 32, 4, 4, 20)}, "it has the answers to another IN"),
        ({"settings": "6f" * 32}, "its answers are of another model, other settings or other versions"),
        ({"extent": Extent("1a" * 32, 2, 2, 20)}, "line 3 is no answer of a batch"),
    ],
)
def test_answers_to_something_else_are_refused_and_kept(out, three, change, why):
    before = three.read_bytes()
    with pytest.raises(WrongUsage, match=why) as refused, out(**change):
        pass
    assert refused.value.hint[-1] == Command("batch", IN="prompts.jsonl", OUT="answers-2.jsonl")
    assert three.read_bytes() == before


@pytest.mark.parametrize("content", ["my notes", "my notes\n", '{"id": "a"}\n', "[]\n", "\n", '{"id": 3}\n', "{}\n"])
def test_a_file_of_ones_own_is_not_written_to(out, tmp_path, content):
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    with pytest.raises(WrongUsage, match="is not written to"), out():
        pass
    assert path.read_text() == content


def test_a_line_that_is_answered_twice_is_refused(out, three):
    three.write_text(three.read_text() + three.read_text().splitlines()[0] + "\n")
    with pytest.raises(WrongUsage, match="line 4 answers line 1 of IN a second time"), out():
        pass


def test_two_batches_do_not_write_one_file(out):
    with out(), pytest.raises(KitError, match=r"another batch is writing answers\.jsonl"), out():
        pass


def test_out_that_is_no_file_is_refused(asked):
    for path in (Path("/dev/null"), Path("/tmp")):
        with pytest.raises(WrongUsage, match="is no file"), answers.opened(path, EXTENT, SETTINGS, TYPED):
            pass


def test_a_full_disk_says_so(asked):
    class Full(io.BytesIO):
        """It takes ten bytes, and then no more."""

        def write(self, content) -> int:
            if self.tell():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(content[:10])

        readinto1 = io.BytesIO.readinto

    there = Answers(Full(), EXTENT, SETTINGS, TYPED)  # type: ignore[arg-type]
    with pytest.raises(KitError, match=r"answers\.jsonl could not be written: the disk is full") as error:
        there.write(lines_of(asked, 1)[0], came(1), ())
    assert error.value.hint == ("free some room, then: ", "the same command")
    assert not there.has(1)


# --- The engines ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine():
    asked = Request(registry.find("starter"), " ", "llamacpp", "cpu")
    with generate.loaded(asked, 200, lambda device: None, slots=3) as found:
        yield found


@pytest.mark.parametrize("method", methods.NAMES)
def test_one_slot_gives_the_very_tokens_of_a_run(method, tiny):
    requests = [Request(tiny, prompt, method, "cpu", max_new_tokens=6) for prompt in TEXTS[:2]]
    requests.append(Request(tiny, TEXTS[2], method, "cpu", max_new_tokens=6, temperature=0.9, seed=11))
    with generate.loaded(requests[0], 100, lambda device: None) as one:
        together = dict(one.generate_all(iter(requests), 1))
    for place, request in enumerate(requests):
        assert together[place].token_ids == generate.complete(request).token_ids


@pytest.mark.parametrize("method", methods.NAMES)
def test_many_slots_complete_each_prompt_in_its_place(method, tiny):
    """In float32, where rounding does not decide: batched, with shorter prompts filled up, they say what they say
    alone."""
    exact = {"quant": "bf16"} if methods.of(method).setting == "quant" else {"dtype": "float32"}
    requests = [
        Request(tiny, prompt, method, "cpu", max_new_tokens=count, **exact)
        for prompt, count in zip(TEXTS, (3, 5, 5, 4), strict=True)
    ]
    requests.insert(1, Request(tiny, "word " * 9000, method, "cpu", max_new_tokens=2, **exact))
    requests.append(Request(tiny, "Once", method, "cpu", max_new_tokens=4, temperature=0.8, seed=5, **exact))
    with generate.loaded(requests[0], 100, lambda device: None, slots=3) as one:
        together = dict(one.generate_all(iter(requests), 3))
        assert set(together) == set(range(6))
        error = together.pop(1)
        assert isinstance(error, WrongUsage)
        assert "the context of tiny holds" in error.message
        for place, found in together.items():
            assert found.token_ids == one.generate(requests[place], lambda text: None).token_ids


def test_requests_are_read_as_they_are_needed(engine, starter):
    read = []

    def endless():
        for place in itertools.count():
            read.append(place)
            yield Request(starter, "Once", "llamacpp", "cpu", max_new_tokens=1)

    came = engine.generate_all(endless(), 3)
    assert len([next(came) for _ in range(7)]) == 7
    assert len(read) <= 7 + 2 * 3
    came.close()


def test_whoever_stops_asking_does_not_wait_for_the_answers(engine, starter, monkeypatch):
    """Closed in the middle, what is under way is given up, and others are answered."""
    short, long = (Request(starter, "Once", "llamacpp", "cpu", max_new_tokens=count) for count in (1, 2))
    answer = engine.server.answer

    def or_wait(slot: int, ids: list[int], count: int, *more: object, **named: object) -> list[int]:
        if count == 1:
            return answer(slot, ids, count, *more, **named)
        connection = http.client.HTTPConnection(*silent.getsockname(), timeout=60)
        engine.server._connections.add(connection)
        connection.request("GET", "/")
        try:
            connection.getresponse()
        except TimeoutError:
            waited.append(slot)
        return []

    waited: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(engine.server, "answer", or_wait)
        came = engine.generate_all(iter([short, long, long, long]), 3)
        assert next(came)[0] == 0
        came.close()
    assert not waited
    assert [place for place, _ in engine.generate_all(iter([short]), 3)] == [0]


# --- The verb ---------------------------------------------------------------------------------------------------------

WORDS = ("--method", "llamacpp", "--device", "cpu", "--max-new-tokens", "4")


def words_for(source: Path, target: Path, *more: str) -> list[str]:
    return ["--in", str(source), "--out", str(target), *WORDS, *more]


@pytest.fixture
def reports_in(tmp_path, monkeypatch) -> Path:
    """reports/ of the test's own, for what runs in this process."""
    monkeypatch.setattr("kit.paths.REPORTS", tmp_path / "reports")
    return tmp_path / "reports"


def test_the_verb_answers_what_can_be_answered_and_ends_with_1_for_the_rest(script, written, tmp_path):
    source = written({"prompt": TEXTS[0], "id": "a"}, "{", {"prompt": "word " * 9000}, {"prompt": TEXTS[2]})
    done = script("batch", *words_for(source, tmp_path / "out.jsonl", "--order"))
    assert done.status == 1
    assert done.out == ""
    assert "2 of 4 prompts answered, 8 tokens" in done.err
    assert "2 of 4 failed" in done.err
    assert "the first: line 2: the line is not JSON" in done.err
    first, second, third, fourth = said(tmp_path / "out.jsonl")
    assert text(first) == " Paris.\n\n"
    assert [first["custom_id"], fourth["custom_id"]] == ["a", None]
    assert second["error"]["message"].startswith("line 2: ")
    assert "the context of starter holds" in third["error"]["message"]
    again = script("batch", *words_for(source, tmp_path / "out.jsonl", "--order"))
    assert again.status == 1
    assert "2 of 4 prompts answered, 4 of them before" in again.err
    assert len(said(tmp_path / "out.jsonl")) == 4


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_goes_on(written, tmp_path, script):
    source, target = (
        written(*[{"prompt": f"{prompt} {number}"} for number in range(6) for prompt in TEXTS]),
        tmp_path / "o",
    )
    command = [sys.executable, "-m", "scripts.batch", *words_for(source, target, "--slots", "2")]
    for wanted in (1, 9):
        with subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stderr=subprocess.DEVNULL) as running:
            while not target.exists() or target.read_bytes().count(b"\n") < wanted:
                assert running.poll() is None
                time.sleep(0.01)
            running.send_signal(signal.SIGKILL)
    before = target.read_bytes()
    before = before[: before.rindex(b"\n") + 1]
    with target.open("ab") as file:
        file.write(before.splitlines()[-1][:40])  # as if in the middle of a line
    done = script("batch", *words_for(source, target, "--slots", "2"))
    assert done.status == 0, done.err
    assert f"24 of 24 prompts answered, {before.count(bytes([10]))} of them before" in done.err
    assert target.read_bytes().startswith(before)
    numbers = sorted(int(answer["id"].rpartition("-")[2]) for answer in said(target))
    assert numbers == list(range(1, 25))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_it_with_what_is_done(written, tmp_path, number, status):
    lines = [{"prompt": "Once", "max_tokens": count} for count in (1, *[200] * 8)]
    source, target = written(*lines), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "scripts.batch", *words_for(source, target, "--slots", "2")]
    with subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(), stderr=subprocess.PIPE, encoding="utf-8"
    ) as running:
        while not target.exists() or not target.read_bytes().count(b"\n"):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(number)
        _, err = running.communicate(timeout=60)
    assert running.returncode == status
    assert f"what is answered is in {target}: the same command goes on" in err
    assert "Traceback" not in err
    assert all(answer["error"] is None for answer in said(target))


def test_ctrl_c_between_two_answers_ends_it_too(written, tmp_path, starter):
    """While others are under way: the engine, closed under them, would wait for ever."""

    def interrupt(what: str, done: float, total: float = 1.0, unit: str = "") -> None:
        if done:
            raise KeyboardInterrupt

    source = written(*[{"prompt": "Once", "max_tokens": count} for count in (1, 200, 200)])
    request = Request(starter, " ", "llamacpp", "cpu")
    wanted = batch.Asked(request, source, tmp_path / "out.jsonl", 2, False, TYPED)
    with pytest.raises(KeyboardInterrupt):
        batch.batch(wanted, batch.Listener(lambda device: None, interrupt, print, sys.exit))
    assert len(said(tmp_path / "out.jsonl")) == 1


@pytest.mark.slow
def test_other_settings_do_not_mix(script, written, tmp_path):
    source, target = written({"prompt": TEXTS[0]}), tmp_path / "out.jsonl"
    assert script("batch", *words_for(source, target)).status == 0
    for more in (("--temperature", "1"), ("--slots", "2"), ("--order",), ("--quant", "bf16")):
        done = script("batch", *words_for(source, target, *more))
        assert done.status == 2, more
        assert "its answers are of another model, other settings or other versions" in done.err
    source.write_text('{"prompt": "another"}')
    assert "it has the answers to another IN" in script("batch", *words_for(source, target)).err


def test_what_is_missing_or_the_same_file_says_what_to_type(script, written):
    done = script("batch")
    assert done.status == 2
    assert "next: make batch IN=prompts.txt OUT=answers.jsonl" in done.err
    path = written({"prompt": "a"})
    done = script("batch", *words_for(path, path))
    assert done.status == 2
    assert "IN and OUT are the same file" in done.err
    assert said(path) == [{"prompt": "a"}]


def test_too_many_slots_for_the_memory_are_refused_before_anything_is_loaded(written, tmp_path, monkeypatch, asked):
    monkeypatch.setattr("kit.engines.memory.free_memory", lambda here: 300_000_000)
    target = tmp_path / "out.jsonl"
    wanted = batch.Asked(asked, written({"prompt": "a", "max_tokens": 8000}), target, 64, False, TYPED)
    with pytest.raises(
        KitError, match=r"with 64 slots of 800[0-9] tokens needs [\d.]+ GB of memory, and 0.30"
    ) as error:
        batch.batch(wanted, batch.Listener(print, files.silent, print, sys.exit))
    assert error.value.hint[0] == Command("batch", SLOTS=1)


@pytest.mark.slow
def test_the_report_says_what_it_was_made_of_and_two_compare(script, written, tmp_path, make, starter):
    source = written(*[{"prompt": prompt, "id": f"p{place}"} for place, prompt in enumerate(TEXTS)])
    targets = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    written_down = []
    for target, quant in zip(targets, ("q4_1", "q4_0"), strict=True):
        done = script("batch", *words_for(source, target, "--quant", quant))
        assert done.status == 0, done.err
        written_down.append(ROOT / done.err.partition("written down: ")[2].split()[0])
    content = json.loads(written_down[0].read_text())
    assert content["in"] == {"name": str(source), "sha256": files.sha256(source), "prompts": 4}
    assert content["out"] == {"name": str(targets[0]), "sha256": files.sha256(targets[0])}
    assert content["outcome"] == {"answered": 4, "failed": 0, "new_tokens": 16}
    assert content["model"] == starter.identity()
    assert content["request"]["seed"] == 0
    assert "xllamacpp" in content["versions"]
    assert script("compare", "--a", str(written_down[0]), "--b", str(written_down[0])).status == 0
    done = script("compare", "--a", str(written_down[0]), "--b", str(written_down[1]))
    assert done.status == 1
    differ = [
        place for place, (one, other) in enumerate(zip(*map(said, targets), strict=True)) if text(one) != text(other)
    ]
    assert differ
    for place in differ:
        assert f"p{place}, “{TEXTS[place]}”: from token " in done.out
    assert done.out.count("from token") == len(differ)
    targets[1].write_text("")
    assert (
        "is no longer what the report says"
        in script("compare", "--a", str(written_down[0]), "--b", str(written_down[1])).err
    )
    for path in written_down:
        path.unlink()
