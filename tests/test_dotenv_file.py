"""`.env`: read alike by every tool, or refused by name."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from dotenv import dotenv_values

from kit import settings
from kit.paths import ROOT


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'HF_TOKEN="hf_x"\n', "quotes"),
        (b"HF_TOKEN='hf_x'\n", "quotes"),
        (b"export HF_TOKEN=hf_x\n", "export"),
        (b"HF_TOKEN = hf_x\n", "blank"),
        (b"HF_TOKEN= hf_x\n", "blank"),
        (b"HF_TOKEN=hf_x \n", "blank"),
        (b"HF_TOKEN=hf_x # mine\n", "comment"),
        (b"HF_TOKEN=hf_x\r\n", "CRLF"),
        (b"\xef\xbb\xbfHF_TOKEN=hf_x\n", "byte order mark"),
        (b"PROMPT=costs $5\n", "$"),
        (b"PROMPT=a\\nb\n", "backslash"),
        (b"HF_TOKEN\n", "no `=`"),
        (b"HF-TOKEN=x\n", "name"),
        (b"PROMPT=\xff\n", "UTF-8"),
    ],
)
def test_a_form_that_tools_read_differently_is_named(content, says):
    (fault, *_) = settings.faults(content)
    assert says in fault.text
    assert fault.line == 1


def test_a_fault_never_shows_the_value():
    for content in (b'HF_TOKEN="hf_secret"\n', b"HF_TOKEN=hf_secret # x\n", b" HF_TOKEN=hf_secret\n"):
        assert all("hf_secret" not in fault.text for fault in settings.faults(content))


def test_the_line_is_counted_from_one():
    assert [fault.line for fault in settings.faults(b"# fine\n\nMODEL='x'\n")] == [3]


def test_good_forms_pass_and_python_dotenv_reads_them_as_written(tmp_path: Path):
    content = "# comment\n\nMODEL=llama-3.2-1b\nHF_TOKEN=\nPROMPT=Hello, who or what are you ?\nX=a=b#c é 🎉\n"
    assert settings.faults(content.encode()) == []
    path = tmp_path / ".env"
    path.write_text(content, encoding="utf-8")
    assert dotenv_values(path, interpolate=False) == {
        "MODEL": "llama-3.2-1b",
        "HF_TOKEN": "",
        "PROMPT": "Hello, who or what are you ?",
        "X": "a=b#c é 🎉",
    }


def test_the_example_has_no_fault_and_every_name_in_it_may_stand_there():
    from kit.paths import ROOT

    content = (ROOT / ".env.example").read_text()
    assert settings.faults(content.encode()) == []
    named = re.findall(r"^#?([A-Z][A-Z_]*)=", content, re.MULTILINE)
    assert len(named) > 15
    assert all(settings.may_stand_in_dotenv(name) for name in named)


def test_before_there_is_an_environment_the_lines_are_read_as_python_dotenv_reads_them(tmp_path, monkeypatch):
    path = tmp_path / ".env"
    path.write_text("# comment\n\nMODEL=llama-3.2-1b\nHF_TOKEN=\nPROMPT=a=b#c é 🎉\nSEED=1\nSEED=2\n", encoding="utf-8")
    path.chmod(0o600)
    with_the_library = settings.read(path)
    monkeypatch.setitem(sys.modules, "dotenv", None)
    assert settings.read(path) == with_the_library
    assert with_the_library.values["SEED"] == "2"


def test_a_file_that_others_can_read_is_noticed(tmp_path: Path):
    path = tmp_path / ".env"
    path.write_text("MODEL=starter\n")
    path.chmod(0o644)
    assert [following for _, following in settings.exposures(path)] == ["chmod 600 .env"]
    path.chmod(0o600)
    assert settings.exposures(path) == []


def test_the_example_changes_no_model_before_it_can_be_had():
    """Copied as it is, every verb runs the starter."""
    values = settings.read(ROOT / ".env.example").values
    assert "MODEL" not in values
