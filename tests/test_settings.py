"""The order: make variable or flag, environment, .env, default."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kit import settings
from kit.errors import KitError
from tests.conftest import run_command


@pytest.fixture
def asked(kit_copy: Path, make, script):
    """What a run takes a setting from: its JSON, made fast by a prompt that ends after one token."""

    def ask(dotenv: str, *words: str, env: dict[str, str] | None = None) -> dict:
        (kit_copy / ".env").write_text(dotenv)
        (kit_copy / ".env").chmod(0o600)
        done = script("run", "--json", "--max-new-tokens", "1", *words, cwd=kit_copy, env=env or {})
        assert done.status == 0, done.err
        return json.loads(done.out)

    return ask


@pytest.mark.container
def test_flag_beats_environment_beats_dotenv_beats_default(asked):
    dotenv = "METHOD=manual\nSEED=3\nPROMPT=from the file\n"
    by_file = asked(dotenv)
    assert (by_file["method"], by_file["seed"], by_file["prompt"]) == ("manual", 3, "from the file")
    by_environment = asked(dotenv, env={"METHOD": "pipeline", "SEED": "4"})
    assert (by_environment["method"], by_environment["seed"]) == ("pipeline", 4)
    by_flag = asked(dotenv, "--seed", "5", env={"SEED": "4"})
    assert by_flag["seed"] == 5
    assert asked("")["seed"] == 0


def test_a_bad_dotenv_is_refused_with_its_line(kit_copy, script):
    (kit_copy / ".env").write_text('MODEL="starter"\n')
    done = script("run", cwd=kit_copy)
    assert done.status == 1
    assert "line 1: MODEL has quotes" in done.err
    assert "next:" in done.err
    assert done.out == ""


def test_a_dotenv_that_others_can_read_warns_and_goes_on(kit_copy, script):
    (kit_copy / ".env").write_text("MODEL=starter\n")
    (kit_copy / ".env").chmod(0o644)
    done = script("run", "--max-new-tokens", "1", cwd=kit_copy)
    assert done.status == 0
    assert "chmod 600 .env" in done.err


def test_a_dotenv_that_git_would_commit_warns_and_goes_on(kit_copy, script):
    run_command(["git", "init", "-q"], cwd=kit_copy)
    (kit_copy / ".gitignore").unlink()
    (kit_copy / ".env").write_text("MODEL=starter\nHF_TOKE=x\n")
    (kit_copy / ".env").chmod(0o600)
    done = script("run", "--max-new-tokens", "1", cwd=kit_copy)
    assert done.status == 0
    assert "warning: git would commit .env: add /.env to .gitignore" in done.err
    assert "warning: .env sets HF_TOKE, which nothing here reads" in done.err


def test_library_names_reach_the_environment_once(tmp_path, monkeypatch):
    path = tmp_path / ".env"
    path.write_text("HF_TOKEN=hf_file\nHF_ENDPOINT=http://127.0.0.1:1\nMODEL=starter\n")
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.delenv("MODEL", raising=False)
    settings.apply(settings.read(path))
    assert os.environ["HF_TOKEN"] == "hf_environment"
    assert os.environ["HF_ENDPOINT"] == "http://127.0.0.1:1"
    assert "MODEL" not in os.environ
    monkeypatch.delenv("HF_ENDPOINT")


def test_no_dotenv_is_an_empty_one(tmp_path):
    assert settings.read(tmp_path / ".env") == settings.Settings()


def test_a_dotenv_that_cannot_be_read_says_so(tmp_path):
    (tmp_path / ".env").mkdir()
    with pytest.raises(KitError, match="cannot be read"):
        settings.read(tmp_path / ".env")


VALUES = {
    "MODEL": "smollm2-135m",
    "DEVICE": "cpu",
    "METHOD": "manual",
    "DTYPE": "float32",
    "PROMPT": "from the file",
    "PROMPT_FILE": "prompt.txt",
    "MAX_NEW_TOKENS": "3",
    "SEED": "7",
    "TEMPERATURE": "0.5",
    "JSON": "1",
    "QUANT": "q8_0",
}


@pytest.mark.parametrize("name", VALUES)
def test_every_name_that_dotenv_may_set_reaches_its_option(name, monkeypatch):
    import click

    from scripts import cli, run

    for other in VALUES:
        monkeypatch.delenv(other, raising=False)
    command = run.run
    defaults = cli._defaults(settings.Settings({name: VALUES[name]}))
    seen = {}
    bare = click.Command("seen", params=command.params, callback=lambda **given: seen.update(given))
    bare.main([], standalone_mode=False, default_map=defaults)
    option = {"JSON": "as_json"}.get(name, name.lower())
    assert str(seen[option]) == ("True" if name == "JSON" else VALUES[name])


def test_what_overwrites_cannot_stand_in_dotenv():
    from scripts import cli

    assert cli._defaults(settings.Settings({"RECORD": "1", "FORCE": "1", "NAME": "x", "FROM": "y"})) == {}


def test_the_values_here_are_of_every_verbs_name_that_dotenv_may_set():
    may = {
        variable.name
        for variable in settings.VARIABLES
        if variable.verbs and settings.may_stand_in_dotenv(variable.name)
    }
    assert may - {"MEMORY", "BASE_IMAGE"} == set(VALUES)


def test_an_empty_variable_does_not_hide_dotenvs(tmp_path, monkeypatch):
    path = tmp_path / ".env"
    path.write_text("HF_TOKEN=hf_file\n")
    monkeypatch.setenv("HF_TOKEN", "")
    settings.apply(settings.read(path))
    assert os.environ["HF_TOKEN"] == "hf_file"


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE"])
def test_a_companys_network_can_stand_in_dotenv(name, tmp_path, monkeypatch):
    path = tmp_path / ".env"
    path.write_text(f"{name}=/x\n")
    path.chmod(0o600)
    monkeypatch.setenv(name, "")
    found = settings.read(path)
    assert found.warnings == ()
    settings.apply(found)
    assert os.environ[name] == "/x"
