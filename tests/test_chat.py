"""`make chat`: the model loaded once, a turn for each line, and nothing said is lost."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from kit.engines import methods
from kit.engines.llamacpp_engine import LlamacppEngine
from kit.engines.request import Request
from kit.errors import WrongUsage
from kit.models import registry
from kit.paths import ROOT
from kit.serve.chat import Chat, Full
from scripts import chat as script_chat
from tests.conftest import clean_environment, run_command

PROMPT = "The capital of France is"
READY = b"\x1b[?2004h"  # a terminal is told so when pasted text may come


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamacppEngine]:
    with LlamacppEngine(registry.find("starter"), "cpu", "auto") as found:
        found.load(256)
        yield found


@pytest.fixture
def talk(engine, monkeypatch) -> Chat:
    """As of a base model: it goes on with the text so far."""
    monkeypatch.setattr(Chat, "has_template", False)
    return Chat(engine, Request(engine.model, " ", "llamacpp", max_new_tokens=4), 256)


def told(talk: Chat, line: str) -> None:
    script_chat.turn(talk, line)


def test_a_turn_goes_on_with_the_whole_text_so_far(talk, engine):
    pieces: list[str] = []
    first = talk.say(PROMPT, pieces.append)
    assert "".join(pieces) == first.answer == " Paris.\n\n"
    second = talk.say("Italy's is", pieces.append)
    whole = f"{PROMPT}{first.answer}\nItaly's is"
    assert second.answer == engine.generate(Request(engine.model, whole, max_new_tokens=4), lambda text: None).text
    assert talk.text() == whole + second.answer


def test_an_instruct_models_turns_become_its_chat_templates_prompt(engine):
    talk = Chat(engine, Request(engine.model, " ", "llamacpp", max_new_tokens=2), 256)
    talk.say("One?", lambda text: None)
    prompt = talk.prompt("Two?")
    assert prompt.endswith("<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.count("<|im_start|>assistant") == 2
    assert talk.turns[0].answer in prompt


def test_a_full_context_says_so_and_offers_what_to_drop(talk, capsys):
    told(talk, PROMPT)
    before = list(talk.turns)
    with pytest.raises(Full, match=r"the context is full: \d+ tokens with this one, and it holds 256"):
        talk.say("word " * 300, lambda text: None)
    assert talk.turns == before
    told(talk, "word " * 300)
    assert "next: /drop forgets the oldest turn, /undo the last one, /reset all of them" in capsys.readouterr().err


def test_undo_drop_reset_seed_and_temperature(talk, capsys):
    for line in ("One", "Two", "Three"):
        told(talk, line)
    told(talk, "/drop")
    told(talk, "/undo")
    assert [turn.said for turn in talk.turns] == ["Two"]
    told(talk, "/reset")
    assert talk.turns == []
    told(talk, "/undo")
    assert "nothing was said yet" in capsys.readouterr().err
    told(talk, "/seed 7")
    told(talk, "/temperature 0.9")
    assert (talk.asked.seed, talk.asked.temperature) == (7, 0.9)
    drawn = [talk.say(PROMPT, lambda text: None).answer for _ in range(2) if not talk.turns.clear()]
    assert drawn[0] == drawn[1]
    for wrong in ("/seed x", "/temperature -1", "/temperature nan", "/nothing"):
        told(talk, wrong)
        assert "next: /" in capsys.readouterr().err
    assert (talk.asked.seed, talk.asked.temperature) == (7, 0.9)


def test_help_lists_every_command(talk, capsys):
    told(talk, "/help")
    listed = set(re.findall(r"^  (/\w+)", capsys.readouterr().err, re.MULTILINE))
    assert listed == {"/undo", "/drop", "/reset", "/seed", "/temperature", "/save", "/help"}


def test_the_text_is_saved_and_no_file_is_overwritten(talk, tmp_path, capsys):
    told(talk, PROMPT)
    told(talk, f"/save {tmp_path / 'a text.txt'}")
    assert (tmp_path / "a text.txt").read_text() == talk.text() + "\n"
    told(talk, f"/save {tmp_path / 'a text.txt'}")
    assert "is there already" in capsys.readouterr().err
    told(talk, f"/save {tmp_path / 'no' / 'folder'}")
    assert "was not written" in capsys.readouterr().err
    with pytest.raises(WrongUsage):
        script_chat.command(talk, "/save")


def test_ctrl_c_stops_an_answer_which_is_kept_as_far_as_it_came(talk):
    pieces: list[str] = []

    def stop(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 2:
            raise KeyboardInterrupt

    turn = talk.say(PROMPT, stop)
    assert turn.answer == "".join(pieces[:2])
    assert talk.turns == [turn]
    assert talk.say("Italy's is", lambda text: None).answer


def test_a_pipe_is_answered_line_by_line_and_stdout_has_the_answers_alone(script):
    words = ["--method", "llamacpp", "--max-new-tokens", "3"]
    done = run_command(
        [sys.executable, "-m", "scripts.chat", *words],
        stdin="Say one.\n\n/undo\nSay two.\n",
        env={"PYTHONWARNINGS": ""},
    )
    assert done.status == 0
    assert len(done.out.strip().splitlines()) >= 2
    assert "answers through its chat template" in done.err
    assert "forgotten: Say one." in done.err


@pytest.mark.slow
@pytest.mark.parametrize("method", methods.NAMES)
def test_every_method_says_what_a_run_says(script, method):
    words = ["--method", method, "--max-new-tokens", "8"]
    prompt = "<|im_start|>user\nHello<|im_end|>\n"
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    done = run_command([sys.executable, "-m", "scripts.chat", *words], stdin="Hello\n")
    run = script("run", *words, "--prompt", f"{system}{prompt}<|im_start|>assistant\n")
    assert done.status == 0, done.err
    assert done.out == run.out


def test_a_context_that_the_model_has_not_is_refused(script):
    done = script("chat", "--context", "9000")
    assert (done.status, "the context of starter holds 8192 tokens" in done.err) == (2, True)


@pytest.mark.slow
def test_in_a_terminal_what_is_pasted_is_one_turn_ctrl_c_stops_an_answer_and_ctrl_d_ends():
    inner, outer = pty.openpty()
    command = [sys.executable, "-m", "scripts.chat", "--method", "llamacpp", "--max-new-tokens", "2000"]
    environment = clean_environment() | {"TERM": "xterm", "KIT_TYPED": "", "PROMPT_TOOLKIT_NO_CPR": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=outer, stdout=outer, stderr=outer, start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
    )  # fmt: skip
    os.close(outer)
    seen = b""

    def read_until(sign: bytes, seconds: float = 20) -> bytes:
        nonlocal seen
        end = time.monotonic() + seconds
        while sign not in seen:
            assert select.select([inner], [], [], max(0, end - time.monotonic()))[0], seen
            seen += os.read(inner, 4096)
        head, _, seen = seen.partition(sign)
        return head

    try:
        read_until(READY)
        os.write(inner, b"\x1b[200~Write a long story.\nIn many words.\x1b[201~")
        read_until(b"In many words")
        os.write(inner, b"\r")
        read_until(b"\x1b[?2004l")
        assert select.select([inner], [], [], 20)[0]  # the answer begins
        os.write(inner, b"\x03")
        read_until(b" \xe2\x80\xa6")
        read_until(READY)
        os.write(inner, b"/undo\r")
        read_until(b"forgotten: Write a long story.")
        read_until(READY)
        os.write(inner, b"/undo\r")
        read_until(b"nothing was said yet")  # what was pasted was one turn
        read_until(READY)
        os.write(inner, b"\x04")
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(inner)
