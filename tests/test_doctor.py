"""`make doctor`: every check's findings, before there is an environment and with any Python from 3.9 on."""

from __future__ import annotations

import ast
import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kit.doctor import before_venv, hub, in_venv
from kit.doctor import check as checks
from kit.doctor.check import FAIL, OK, WARN
from kit.environment import lock as locks
from kit.environment.machine import Machine
from kit.errors import KitError
from kit.paths import ROOT
from scripts.hints import words
from tests.conftest import clean_environment, copy_kit, own_file, run_command

FIRST_STAGE = ["kit/errors", "kit/paths", "kit/files", "kit/settings", "kit/environment/machine"]
FIRST_STAGE += ["kit/environment/lock", "kit/models/registry", "kit/models/folder"]
FIRST_STAGE += ["kit/doctor/check", "kit/doctor/before_venv", "scripts/doctor"]


def listed() -> list[checks.Listed]:
    return [*before_venv.listed("starter"), *in_venv.listed("starter")]


def old_python() -> str | None:
    """A Python 3.9 to 3.10 of this machine, if there is one."""
    pyenv = sorted(Path.home().glob(".pyenv/versions/3.9.*/bin/python3"))
    return next(
        (found for name in ("python3.9", "python3.10") if (found := shutil.which(name)) and _runs(found)),
        str(pyenv[0]) if pyenv else None,
    )


def _runs(python: str) -> bool:
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


@pytest.mark.container
def test_a_whole_clone_is_ok_throughout(make):
    done = make("doctor", env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert done.status == 0, done.out
    assert done.out.count("skipped: starter does not come from the Hub") == len(hub.NAMES)
    ids = re.findall(r"^ (?:ok  |WARN)  (D\d\d) ", done.out, re.MULTILINE)
    assert ids == [entry[0] for entry in listed()]
    assert re.search(r"D08 starter .*every sha256 as pinned", done.out)


@pytest.mark.container
@pytest.mark.slow
def test_json_is_one_document(make):
    document = json.loads(make("doctor", "JSON=1").out)
    assert document["ok"] is True
    assert document["model"] == "starter"
    assert [set(check) for check in document["checks"]] == [{"id", "name", "state", "text", "next"}] * len(listed())


def test_ids_are_stable_and_each_has_its_heading_in_troubleshooting():
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    headings = re.findall(r"^### (D\d\d) (\S+)", text, re.MULTILINE)
    assert headings == [entry[:2] for entry in listed()]


@pytest.mark.parametrize("path", FIRST_STAGE)
def test_the_first_stage_parses_on_python_3_9_and_imports_the_standard_library_alone(path):
    tree = ast.parse((ROOT / f"{path}.py").read_text(), feature_version=(3, 9))
    allowed = {
        "kit",
        "scripts",
        "__future__",
        "ast",
        "base64",
        "collections",
        "contextlib",
        "dotenv",  # settings, where there is an environment
        "fcntl",
        "ctypes",
        "dataclasses",
        "difflib",
        "errno",
        "fnmatch",
        "functools",
        "hashlib",
        "json",
        "os",
        "pathlib",
    }
    allowed |= {"operator", "platform", "re", "resource", "shutil", "subprocess", "sys", "tomllib", "typing", "urllib"}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= allowed


@pytest.mark.skipif(old_python() is None, reason="no Python 3.9 to 3.10 on this machine")
def test_an_old_python_runs_it_without_an_environment_and_says_what_it_skips(tmp_path):
    folder = copy_kit(tmp_path / "kit")
    done = run_command([str(old_python()), "-m", "scripts.doctor"], cwd=folder)
    assert done.status == 0, done.out + done.err
    assert re.search(r"D05 memory +skipped: Python 3\.\d+ cannot read env/models.toml", done.out)
    assert re.search(r"WARN  D07 environment +there is no .venv yet\n +-> make setup", done.out)
    assert re.search(r"D20 libraries +skipped: there is no finished .venv", done.out)


def test_it_keeps_going_after_a_failure_and_exits_1(kit_copy):
    (kit_copy / ".env").write_text("MODEL='x'\n")
    (kit_copy / ".env").chmod(0o644)
    done = run_command(["sh", "env/doctor.sh"], cwd=kit_copy, env={"MODEL": "starter"})
    assert done.status == 1
    assert " FAIL  D10 dotenv       line 1 MODEL has quotes" in done.out
    assert " FAIL  D11 secrecy" in done.out
    assert "D20" in done.out
    assert "D10, D11: see docs/troubleshooting.md" in done.out


@pytest.mark.slow
def test_the_model_comes_from_the_environment_then_dotenv(kit_copy):
    (kit_copy / ".env").write_text("MODEL=llama-3.2-1b\n")
    (kit_copy / ".env").chmod(0o600)
    assert json.loads(run_command(["sh", "env/doctor.sh", "--json"], cwd=kit_copy).out)["model"] == "llama-3.2-1b"
    by_environment = run_command(["sh", "env/doctor.sh", "--json"], cwd=kit_copy, env={"MODEL": "starter"})
    assert json.loads(by_environment.out)["model"] == "starter"


@pytest.mark.slow
def test_an_unknown_model_fails_with_the_list(make):
    done = make("doctor", "MODEL=gpt")
    assert done.status == 2
    assert "there is no model 'gpt'. Models: starter" in done.out


def test_wrong_usage_is_2_and_help_is_0(script):
    assert script("doctor", "--magic").status == 2
    assert "usage:" in script("doctor", "--help").out


def test_a_check_that_breaks_is_a_failure_of_its_own():
    def breaks() -> checks.Outcome:
        raise ZeroDivisionError("x")

    def refuses() -> checks.Outcome:
        raise KitError("what", "next")

    found = list(checks.run([("D98", "a", breaks), ("D99", "b", refuses)]))
    assert [check.state for check in found] == [FAIL, FAIL]
    assert "check itself failed" in found[0].text
    assert (found[1].text, found[1].next) == ("what", ("next",))


@pytest.mark.parametrize(
    ("here", "state", "says"),
    [
        (Machine("Darwin", "x86_64", "15.1", translated=True), FAIL, "Rosetta"),
        (Machine("Darwin", "x86_64", "13.1"), FAIL, "Intel"),
        (Machine("Linux", "riscv64"), FAIL, "riscv64"),
        (Machine("Linux", "aarch64", container=True), OK, "aarch64, .*in a container"),
        (Machine("Darwin", "arm64", "15.1"), OK, "arm64"),
    ],
)
def test_processor(here, state, says):
    outcome = before_venv.check_processor(here)
    assert outcome.state == state
    assert re.search(says, outcome.text)
    assert bool(outcome.next) == (state == FAIL)


def test_macos():
    assert before_venv.check_macos(Machine("Darwin", "arm64", "13.6")).state == FAIL
    assert before_venv.check_macos(Machine("Darwin", "arm64", "14.0")).state == OK
    assert "skipped: this is Linux" in before_venv.check_macos(Machine("Linux", "x86_64")).text


@pytest.mark.parametrize(("memory", "state"), [(2_000_000_000, FAIL), (4_000_000_000, WARN), (8_000_000_000, OK)])
def test_memory_against_the_models_peak(memory, state):
    outcome = before_venv.check_memory("llama-3.2-1b", memory)
    assert outcome.state == state
    assert "3.17 GB at most" in outcome.text


def test_disk_that_is_too_small(kit_copy, monkeypatch):
    usage = shutil.disk_usage(kit_copy)
    monkeypatch.setattr(before_venv.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000_000))
    assert before_venv.check_disk("llama-3.2-1b").state == FAIL
    assert before_venv.check_disk("starter").state == OK


@pytest.fixture
def venv(tmp_path, monkeypatch) -> Path:
    """A .venv of Linux' lock's packages, by the names of their .dist-info folders."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    folder = tmp_path / ".venv"
    monkeypatch.setattr(before_venv, "VENV", folder)
    packages = folder / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").touch()
    (folder / "ready").write_text(f"{folder}\n")
    for name, version in {pin.name: pin.version for pin in reversed(locks.read("env/lock/linux.txt"))}.items():
        (packages / f"{name.replace('-', '_')}-{version}.dist-info").mkdir()
    return folder


@pytest.mark.skipif(not shutil.which("uname"), reason="a POSIX machine")
class TestEnvironment:
    def state(self, says: str) -> str:
        outcome = before_venv.check_environment()
        assert re.search(says, outcome.text), outcome.text
        assert outcome.state == OK or words(outcome.next).startswith("make ")
        return outcome.state

    def test_as_the_lock_says(self, venv):
        assert self.state(r"\d+ packages, as env/lock/linux.txt says") == OK

    def test_a_package_of_another_version(self, venv):
        (found,) = venv.glob("lib/*/*/click-*")
        found.rename(found.with_name("click-1.0.dist-info"))
        assert self.state("click is 1.0 and not 8") == FAIL

    def test_a_package_too_many_and_one_missing(self, venv):
        (found,) = venv.glob("lib/*/*/click-*")
        found.rename(found.with_name("six-1.0.dist-info"))
        assert self.state("click is missing.*six is not in the lock") == FAIL

    def test_moved(self, venv):
        (venv / "ready").write_text("/elsewhere/.venv\n")
        assert self.state("made for /elsewhere/.venv and moved") == FAIL

    def test_unfinished(self, venv):
        (venv / "ready").unlink()
        assert self.state("unfinished") == FAIL

    def test_packages_that_are_gone(self, venv):
        shutil.rmtree(venv / "lib")
        with pytest.raises(KitError, match="holds no packages"):
            before_venv.check_environment()

    def test_a_python_that_is_gone(self, venv):
        (venv / "bin" / "python").unlink()
        assert self.state("the one that it was made with is gone") == FAIL

    def test_none_yet(self, venv, monkeypatch):
        monkeypatch.setattr(before_venv, "VENV", venv / "nowhere")
        assert self.state("no .venv yet") == WARN


def test_the_starters_hashes(kit_copy, script):
    path = own_file(kit_copy / "models" / "starter" / "model.safetensors")
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    import os

    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (check,) = [c for c in json.loads(script("doctor", "--json", cwd=kit_copy).out)["checks"] if c["id"] == "D08"]
    assert check["state"] == FAIL
    assert "models/starter/model.safetensors is altered" in check["text"]
    assert check["next"] == "make setup"


class TestSecrecy:
    @pytest.fixture
    def repository(self, tmp_path) -> Path:
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, env=clean_environment())
        (tmp_path / ".gitignore").write_text("/.env\n")
        (tmp_path / ".env").write_text("HF_TOKEN=\n")
        (tmp_path / ".env").chmod(0o600)
        return tmp_path

    def test_private_and_ignored(self, repository):
        assert before_venv.check_secrecy(repository / ".env").state == OK

    def test_readable_by_others(self, repository):
        (repository / ".env").chmod(0o640)
        assert before_venv.check_secrecy(repository / ".env").next == ("chmod 600 .env",)

    def test_git_would_commit_it(self, repository):
        (repository / ".gitignore").unlink()
        assert "git would commit" in before_venv.check_secrecy(repository / ".env").text

    def test_git_has_it(self, repository):
        subprocess.run(["git", "-C", str(repository), "add", "-f", ".env"], check=True)
        assert before_venv.check_secrecy(repository / ".env").next == ("git rm --cached .env",)

    def test_what_git_does_not_say_is_neither_ok_nor_wrong(self, repository, on_path, monkeypatch):
        refusal = "fatal: detected dubious ownership in repository"
        monkeypatch.setenv("PATH", on_path(git=f"echo '{refusal}' >&2; exit 128")["PATH"])
        outcome = before_venv.check_secrecy(repository / ".env")
        assert outcome.state == WARN
        assert f"could not be looked at: {refusal}" in outcome.text


def test_an_environment_that_does_not_import_is_said(monkeypatch):

    def fail() -> None:
        raise ImportError("libtorch is gone")

    monkeypatch.setattr(in_venv.imports, "import_all", fail)
    outcome = in_venv.check_libraries()
    assert outcome.state == FAIL
    assert "libtorch is gone" in outcome.text


def test_an_unknown_model_leaves_the_second_stage_whole():
    """D20 and D21 still look; the Hub's checks say why they do not."""
    found = list(checks.run(in_venv.listed("gpt")))
    assert [check.state for check in found] == [OK] * len(found)
    assert {check.text for check in found[2:]} == {"skipped: which model it is about is not known (D09)"}


def test_json_comes_from_dotenv_too(kit_copy):
    (kit_copy / ".env").write_text("JSON=1\n")
    (kit_copy / ".env").chmod(0o600)
    assert json.loads(run_command(["sh", "env/doctor.sh"], cwd=kit_copy).out)["model"] == "starter"


def test_a_reader_that_goes_away_is_no_error(kit_copy):
    done = run_command(["bash", "-c", "sh env/doctor.sh | true; echo ${PIPESTATUS[0]}"], cwd=kit_copy)
    assert done.out == "0\n"
    assert done.err == ""


def test_a_closed_stdout_leaves_the_exit_status(tmp_path):
    done = run_command(["sh", "-c", "exec sh env/doctor.sh >&-"], cwd=copy_kit(tmp_path / "kit"))
    assert (done.status, done.err) == (0, "")


def test_ctrl_c_ends_it_without_a_traceback(monkeypatch, capsys):
    from scripts import doctor

    def interrupt(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "main", interrupt)
    assert doctor.entry() == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_a_dotenv_that_is_a_folder(kit_copy):
    (kit_copy / ".env").mkdir()
    (outcome,) = checks.run([("D10", "dotenv", lambda: before_venv.check_dotenv(kit_copy / ".env"))])
    assert outcome.state == FAIL
    assert "move it away" in words(outcome.next)
