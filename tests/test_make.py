"""The Makefile: the verbs, what reaches them, and that nothing is done twice."""

from __future__ import annotations

import os
import re

import pytest

from kit.paths import ROOT
from tests.conftest import run_command

MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.mark.container
def test_make_alone_lists_every_target(make):
    done = make()
    assert done.status == 0
    assert done.out == make("help").out
    listed = set(re.findall(r"^  make (\S+) +\S", done.out, re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)) - {"environment", "development"}
    assert listed == targets
    assert {"run", "test", "setup", "doctor", "lock", "lint", "test-slow", "clean", "purge", "help"} <= listed
    assert done.out.index("make run") < done.out.index("make test") < done.out.index("make lock")


def test_nothing_that_make_3_81_lacks():
    code = "\n".join(line for line in MAKEFILE.splitlines() if not line.startswith("#"))
    for absent in (".ONESHELL", ".SHELLFLAGS", "!=", "$(file", "\nundefine ", "private ", "define take =", "::="):
        assert absent not in code, absent


def test_nothing_that_a_macs_tools_lack():
    for path in [ROOT / "Makefile", *(ROOT / "env").glob("*.sh")]:
        lines = [line.split("#")[0] for line in path.read_text().splitlines()]
        # Either name of it, whichever is there.
        code = "\n".join(line for line in lines if "shasum" not in line)
        for absent in (
            "readlink -f",
            "sed -i",
            "sha256sum",
            "timeout ",
            "nproc",
            "grep -P",
            "stat -c",
            "[[ ",
            "local ",
        ):
            assert absent not in code, f"{path.name}: {absent}"


@pytest.mark.container
def test_a_second_run_does_no_set_up(make):
    make("setup")
    watched = [ROOT / ".venv" / "ready", ROOT / "models" / "starter" / ".verified.json", ROOT / ".venv" / "warm"]
    before = [path.stat().st_mtime_ns for path in watched]
    done = make("run", "MAX_NEW_TOKENS=1", "METHOD=llamacpp")
    assert done.status == 0
    assert [path.stat().st_mtime_ns for path in watched] == before
    for word in ("making", "installing", "compiling", "fetching", "converting"):
        assert word not in done.err


def test_purge_asks_and_without_anybody_to_ask_removes_nothing(kit_copy, make):
    done = make("purge", cwd=kit_copy)
    assert done.status == 2
    assert "make purge FORCE=1" in done.err
    assert (kit_copy / "models" / "starter" / "model.safetensors").exists()


def test_purge_with_force_removes_what_can_be_made_again_and_never_dotenv(kit_copy, make):
    for name in (".venv", "reports", "dist", "kit/__pycache__"):
        (kit_copy / name).mkdir(exist_ok=True)
    (kit_copy / ".env").write_text("MODEL=starter\n")
    assert make("purge", "FORCE=1", cwd=kit_copy).status == 0
    left = {path.name for path in kit_copy.iterdir()}
    assert not left & {".venv", "models", "reports", "dist"}
    assert not (kit_copy / "kit" / "__pycache__").exists()
    assert {".env", "kit", "Makefile"} <= left


def test_clean_keeps_the_models(kit_copy, make):
    (kit_copy / ".venv").mkdir()
    assert make("clean", cwd=kit_copy).status == 0
    assert not (kit_copy / ".venv").exists()
    assert (kit_copy / "models" / "starter" / "model.safetensors").exists()


@pytest.mark.container
def test_the_environment_of_a_run_is_the_locks_alone(make):
    """Another environment's PYTHONPATH and PYTHONHOME, and a machine's PYTHONDONTWRITEBYTECODE, stay outside."""
    foreign = {"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1"}
    done = make(
        "run", "METHOD=llamacpp", "MAX_NEW_TOKENS=1", env={**foreign, "VIRTUAL_ENV": "/other", "CONDA_PREFIX": "/conda"}
    )
    assert done.status == 0, done.err
    assert os.environ.get("PYTHONHOME") is None


def test_goals_come_one_after_the_other_whatever_j_says(kit_copy, make):
    """`make -j clean setup` would remove what it makes."""
    (kit_copy / "env" / "bootstrap.sh").write_text("sleep 0.3; mkdir -p .venv; touch .venv/made\n")
    (kit_copy / ".venv").mkdir()
    (kit_copy / ".venv" / "old").touch()
    assert make("-j4", "clean", "environment", cwd=kit_copy).status == 0
    assert [path.name for path in (kit_copy / ".venv").iterdir()] == ["made"]
    again = make("-j4", "environment", "clean", cwd=kit_copy)
    assert again.status == 0
    assert not (kit_copy / ".venv").exists()


SCRIPTS = sorted([*(ROOT / "env").glob("*.sh"), ROOT / ".ci" / "engine", ROOT / ".ci" / "run"])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_is_led_elsewhere_by_cdpath(path):
    """`cd` looks into CDPATH for a name like `env/..`, and prints where it went."""
    for line in path.read_text().splitlines():
        for before, target in re.findall(r"(.*?)\bcd (\S+)", line.partition(" #")[0]):
            assert before.endswith("CDPATH= ") or target.startswith(("/", "./", "../")), line


@pytest.mark.parametrize("command", [["make", "-s", "purge", "FORCE=1"], ["sh", "env/purge.sh", "--force"]])
@pytest.mark.parametrize("cdpath", ["elsewhere", "."])
def test_purge_leaves_another_folders_models(tmp_path, kit_copy, cdpath, command):
    elsewhere = tmp_path / "elsewhere"
    for name in ("env", "models"):
        (elsewhere / name).mkdir(parents=True)
    place = str(elsewhere) if cdpath == "elsewhere" else cdpath
    done = run_command(command, cwd=kit_copy, env={"CDPATH": place})
    assert (done.status, done.out) == (0, "")
    assert (elsewhere / "models").exists()
    assert not (kit_copy / "models").exists()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("prompt=hello", "no verb has a variable prompt (it is PROMPT)"),
        ("max-new-tokens=3", "no verb has a variable max-new-tokens (it is MAX_NEW_TOKENS)"),
        ("PROMT=hello", "no verb has a variable PROMT: docs/verbs.md lists them"),
    ],
)
def test_a_variable_that_no_verb_knows_is_named_where_it_is_typed(make, word, says):
    done = make("run", word)
    assert done.status == 2
    assert says in done.err
    assert make("-n", "run", env=dict([word.split("=")])).status == 0  # other programs export what they like


def test_variables_of_libraries_may_be_typed(make):
    assert make("-n", "run", "HF_HOME=/x", "OMP_NUM_THREADS=1", "https_proxy=http://x", "KIT_DEBUG=1").status == 0
