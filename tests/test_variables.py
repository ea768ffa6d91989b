"""The one table of variables: what it says holds for make, the environment, .env and what is written from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kit import settings
from kit.paths import ROOT
from kit.settings import VARIABLES
from scripts import variables
from tests.conftest import run_command

TYPED = [variable.name for variable in VARIABLES if variable.typed]
ROW = "SHOUT | flag | - | run | dotenv container | #SHOUT=0 | 1: the prompt in capitals.\n"


@pytest.fixture
def asked(kit_copy: Path, make):
    """What a verb's program finds in its environment."""
    python = kit_copy / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nenv\n")
    python.chmod(0o755)
    (kit_copy / "env" / "bootstrap.sh").write_text("")

    def ask(*words: str, **env: str) -> dict[str, str]:
        done = make(*words, cwd=kit_copy, env=env)
        assert done.status == 0, done.err
        return dict(line.split("=", 1) for line in done.out.splitlines() if "=" in line)

    return ask


@pytest.mark.parametrize("name", TYPED)
def test_what_overwrites_opens_or_names_counts_only_where_it_is_typed(asked, name):
    typed = asked("run", f"{name}=it's $HOME")
    assert (typed[name], typed["KIT_TYPED"].split()) == ("it's $HOME", [name])
    assert asked("run", KIT_TYPED=name, **{name: "exported"})["KIT_TYPED"].strip() == ""


def test_a_verb_that_writes_takes_no_general_name_from_the_environment(script):
    """WSL exports NAME, and other programs the like."""
    exported = {"NAME": "laptop-7", "REPO": "some/tiny"}
    done = script("add_model", env=exported)
    assert (done.status, "REPO and NAME are both needed" in done.err) == (2, True)
    done = script("add_model", env={"KIT_TYPED": "NAME REPO", "NAME": "Laptop 7", "REPO": "some/tiny"})
    assert "NAME=Laptop 7: small letters" in done.err


def test_everything_that_is_written_from_the_table_is_as_the_table_has_it():
    for path, text in variables.written().items():
        assert path.read_text(encoding="utf-8") == text, f"make variables writes {path.name}"
    assert "scripts.variables --check" in (ROOT / "Makefile").read_text()


def test_the_container_gets_no_token_but_for_a_download():
    compose = (ROOT / "docker-compose.yml").read_text()
    assert "HF_TOKEN" not in re.sub(r"#.*", "", compose)
    assert "  - MODEL\n" in compose


@pytest.fixture
def with_a_row_more(kit_copy: Path) -> Path:
    """A copy of the kit with one row more in the table, and its use in the verb that takes it."""
    table = kit_copy / "env" / "variables.txt"
    table.write_text(table.read_text().replace("MODEL ", ROW + "MODEL ", 1))
    verb = kit_copy / "scripts" / "run.py"
    text = verb.read_text().replace("    ignore_eos: bool,\n", "    ignore_eos: bool,\n    shout: bool,\n", 1)
    text = text.replace(
        "text = read_prompt(prompt, prompt_file)\n",
        "text = read_prompt(prompt, prompt_file)\n        text = text.upper() if shout else text\n",
    )
    verb.write_text(text)
    (kit_copy / ".venv").symlink_to(ROOT / ".venv")
    return kit_copy


def test_a_variable_is_one_row_and_its_use(with_a_row_more, script, make):
    kit = with_a_row_more
    assert script("variables", "--check", cwd=kit).status == 1
    done = script("variables", cwd=kit)
    assert done.status == 0, done.err
    (kit / "env" / "bootstrap.sh").write_text("")  # this environment is another clone's
    options = {"METHOD": "llamacpp", "PROMPT": "one two", "MAX_NEW_TOKENS": "1"}
    assert "> ONE TWO" in make("run", "SHOUT=1", cwd=kit, env=options).err
    assert "> ONE TWO" in make("run", cwd=kit, env={**options, "SHOUT": "1"}).err
    (kit / ".env").write_text("SHOUT=1\n")
    (kit / ".env").chmod(0o600)
    done = make("run", cwd=kit, env=options)
    assert "> ONE TWO" in done.err
    assert "warning" not in done.err
    assert "> one two" in make("run", "SHOUT=0", cwd=kit, env=options).err
    # And in everything that is written: the container's names, the example, the help, the page.
    assert "  - SHOUT\n" in (kit / "docker-compose.yml").read_text()
    assert "# 1: the prompt in capitals.\n#SHOUT=0\n" in (kit / ".env.example").read_text()
    assert re.search(r"make run .*\(SHOUT MODEL", make("help", cwd=kit).out)
    assert "(`SHOUT MODEL" in (kit / "docs" / "verbs.md").read_text()


def test_what_no_verb_reads_is_warned_about_natively_and_in_the_container_alike(tmp_path):
    """Both read .env with the same program; and neither takes from it what counts only where it is typed."""
    path = tmp_path / ".env"
    path.write_text("RUNS=3\nNAME=x\nSEED=1\n")
    path.chmod(0o600)
    warned = [warning.split()[2].rstrip(",") for warning in settings.read(path).warnings]
    assert warned == ["RUNS", "NAME"]


def test_help_says_what_each_verb_takes():
    shown = run_command(["make", "-s", "help"]).out
    for verb in ("run", "verify", "bench", "add-model", "docker-run"):
        names = " ".join(variable.name for variable in settings.taken_by(verb))
        assert re.search(rf"make {verb} .*\({re.escape(names)}\)$", shown, re.MULTILINE), verb
