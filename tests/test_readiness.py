"""The readiness code, and the organiser's table."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from kit.environment import facts
from kit.errors import KitError
from kit.models import registry
from kit.verify import readiness
from kit.verify.readiness import Code

HERE, ELSEWHERE = ("macos-arm64", "linux-x86_64") if sys.platform == "darwin" else ("linux-x86_64", "macos-arm64")


@pytest.fixture
def code() -> Code:
    return Code(
        "ok",
        "starter",
        "cpu",
        "bfloat16",
        HERE,
        "3.11",
        readiness.short(facts.commit()).rstrip("+"),
        facts.lock_sha256()[:8],
        readiness.files_digest(registry.find("starter")),
    )


def judge(*lines: str) -> list[readiness.Attendee]:
    return readiness.judge(lines, registry.read())


def test_a_code_is_one_line_and_says_the_same_again(code):
    line = readiness.encode(code)
    assert len(line.split()) == 1
    assert readiness.decode(line) == code
    assert readiness.decode(f"> {line} ,") == code


def test_a_model_whose_name_has_dots(code):
    named = replace(code, model="llama-3.2-1b", commit=f"{code.commit}+")
    assert readiness.decode(readiness.encode(named)) == named


def test_a_typing_error_is_noticed(code):
    line = readiness.encode(code)
    for broken in (line[:-1], line.replace("cpu", "cpv"), line.replace("bmk1", "bmk2"), "ready!"):
        with pytest.raises(KitError):
            readiness.decode(broken)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"outcome": "hashes"}, "the stage hashes failed"),
        ({"model": "gpt"}, "verified gpt, which this clone does not know"),
        ({"files": "00000000"}, "other files of starter"),
        ({"commit": "00000000"}, "the kit at 00000000, and this clone is at"),
        ({"lock": "00000000"}, "another lock"),
        ({"platform": ELSEWHERE}, "another lock"),
    ],
)
def test_who_is_not_ready_and_why(code, change, reason):
    (attendee,) = judge(f"Ada Lovelace: {readiness.encode(replace(code, **change))}")
    assert attendee.name == "Ada Lovelace"
    assert attendee.ready == (reason == "")
    assert reason in "; ".join(attendee.reasons)


def test_the_table(script, tmp_path, code):
    late = readiness.encode(replace(code, outcome="float32"))
    lines = ["# the room", f"Ada, {readiness.encode(code)}", f"Grace - {late}", "Alan: it works!", ""]
    (tmp_path / "codes.txt").write_text("\n".join(lines))
    done = script("readiness", "--codes", str(tmp_path / "codes.txt"))
    assert done.status == 1
    grace, alan, ada, total = done.out.splitlines()
    assert grace.split()[:2] == ["Grace", "NOT"]
    assert "the stage float32 failed" in grace
    assert "there is no readiness code in this line" in alan
    assert ada.split()[:2] == ["Ada", "ready"]
    assert total == "1 of 3 ready"
    everybody = script("readiness", "--codes", "-", stdin=lines[1])
    assert everybody.status == 0
    assert everybody.out.endswith("1 of 1 ready\n")


def test_a_list_that_was_written_on_windows_is_read_the_same(make, tmp_path, code):
    (tmp_path / "codes.txt").write_bytes(f"\ufeff# the room\r\nAda: {readiness.encode(code)}\r\n".encode())
    done = make("readiness", f"CODES={tmp_path / 'codes.txt'}")
    assert done.status == 0, done.err
    assert done.out.startswith("Ada  ready")


def test_wrong_usage(script, tmp_path):
    assert script("readiness").status == 2
    assert script("readiness", "--codes", str(tmp_path / "nowhere")).status == 2
    assert script("readiness", "--codes", "-", stdin="").status == 2
