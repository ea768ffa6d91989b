"""The doctor's first stage: the machine, and what of the kit is on it.

Standard library only, and parsed by Python 3.9: it runs before there is an environment, and with any Python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from kit import settings
from kit.doctor.check import FAIL, OK, WARN, Listed, Outcome, skipped
from kit.environment import lock as locks
from kit.environment import machine
from kit.errors import Command
from kit.models import folder as model_folder
from kit.models import registry
from kit.paths import ROOT

VENV = ROOT / ".venv"
NEEDED_FOR_VENV = 1_400_000_000  # bytes; env/bootstrap.sh asks for the same
OLDEST_MAKE = (3, 81)


def listed(model_name: str) -> list[Listed]:
    """Every check of this stage, for the model that is chosen."""
    chosen = partial(check_model, model_name)
    return [
        ("D01", "make", check_make),
        ("D02", "python", check_python),
        ("D03", "processor", lambda: check_processor(machine.this())),
        ("D04", "macos", lambda: check_macos(machine.this())),
        ("D05", "memory", lambda: check_memory(model_name, machine.this().memory)),
        ("D06", "disk", lambda: check_disk(model_name)),
        ("D07", "environment", check_environment),
        ("D08", "starter", partial(check_model, "starter")),
        ("D09", "model", partial(skipped, "the model is the starter") if model_name == "starter" else chosen),
        ("D10", "dotenv", lambda: check_dotenv(settings.DOTENV)),
        ("D11", "secrecy", lambda: check_secrecy(settings.DOTENV)),
    ]


def check_make() -> Outcome:
    found = re.search(r"GNU Make (\d+)\.(\d+)", settings.output(["make", "--version"]))
    if not found:
        return Outcome(FAIL, "no GNU Make on this machine", "macOS: xcode-select --install; Debian: apt install make")
    version = int(found.group(1)), int(found.group(2))
    if version < OLDEST_MAKE:
        return Outcome(FAIL, f"{found.group(0)} is older than 3.81", "install a newer GNU Make")
    return Outcome(OK, found.group(0))


def check_python() -> Outcome:
    """The Python that set-up would take: env/bootstrap.sh is asked, so that there is one answer."""
    command = ["sh", str(ROOT / "env" / "bootstrap.sh"), "which"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Outcome(OK, done.stdout.strip())
    what, _, following = done.stderr.strip().partition("\n  next: ")
    return Outcome(FAIL, what.replace("error: ", "", 1), following)


def check_processor(here: machine.Machine) -> Outcome:
    if here.system == "Darwin" and here.translated:
        return Outcome(
            FAIL,
            "this Python is x86_64 under Rosetta: MPS and torch's wheels are arm64 only",
            "install an arm64 Python, then: ",
            Command("clean setup", PYTHON="/path/to/it"),
        )
    if here.system == "Darwin" and here.arch != "arm64":
        return Outcome(FAIL, "an Intel Mac: torch has no wheels for it", "use an Apple Silicon Mac or a Linux machine")
    if here.system == "Linux" and here.arch not in ("x86_64", "aarch64"):
        return Outcome(FAIL, f"Linux on {here.arch}: torch has no wheels for it", "use an x86_64 or aarch64 machine")
    return Outcome(OK, f"{here.arch}, {os.cpu_count()} cores" + (", in a container" if here.container else ""))


def check_macos(here: machine.Machine) -> Outcome:
    if here.system != "Darwin":
        return skipped(f"this is {here.system}")
    if here.old_macos():
        return Outcome(FAIL, f"macOS {here.macos}: torch needs {machine.OLDEST_MACOS} or later", "update macOS")
    return Outcome(OK, here.macos)


def check_memory(model_name: str, memory: int | None) -> Outcome:
    if sys.version_info < (3, 11):
        return _no_tomllib()
    model = registry.find(model_name)
    if memory is None:
        return skipped("this system does not say how much memory it has")
    text = f"{model_name} needs {_gb(model.peak_memory)} at most, this machine has {_gb(memory)}"
    if memory < model.peak_memory:
        return Outcome(FAIL, text, Command("run", MODEL="starter"), ", or a machine with more memory")
    if memory < 2 * model.peak_memory:
        return Outcome(WARN, text, "close other programs before a run")
    return Outcome(OK, text)


def check_disk(model_name: str) -> Outcome:
    needed = 0 if (VENV / "ready").exists() else NEEDED_FOR_VENV
    if sys.version_info >= (3, 11):
        for name in {"starter", model_name}:
            model = registry.find(name)
            needed += model.peak_disk if model_folder.missing(model) else 0
    free = shutil.disk_usage(str(ROOT)).free
    text = f"{_gb(needed)} still needed, {_gb(free)} free"
    return Outcome(OK, text) if free >= needed else Outcome(FAIL, text, "free some room")


def check_environment() -> Outcome:
    """.venv against the lock: in its place, and package by package."""
    if not VENV.exists():
        return Outcome(WARN, "there is no .venv yet", Command("setup"))
    if not (VENV / "bin" / "python").exists():
        return Outcome(FAIL, ".venv has no Python: the one that it was made with is gone", Command("setup"))
    try:
        place = (VENV / "ready").read_text().strip()
    except OSError:
        return Outcome(FAIL, ".venv is unfinished", Command("setup"))
    # The folder, not its spelling: a disk may take no notice of small and large letters.
    if not (Path(place).exists() and Path(place).samefile(VENV)):
        return Outcome(FAIL, f".venv was made for {place} and moved", Command("setup"))
    target, present = locks.of(VENV), locks.installed(VENV)
    differing = locks.differences(locks.pins(target), present)
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        return Outcome(FAIL, f"not what the lock says: {', '.join(differing[:3])}{more}", Command("clean setup"))
    return Outcome(OK, f"{len(present)} packages, as {target.lock} says")


def check_model(name: str) -> Outcome:
    """Every byte of a model, hashed. Raises KitError where it is not whole."""
    if sys.version_info < (3, 11):
        return _no_tomllib()
    model = registry.find(name)
    if not model.folder.exists():
        return Outcome(WARN, f"models/{name}/ is not there yet", *model_folder.repair(model))
    model_folder.verify(model)
    return Outcome(OK, f"{len(model.files)} files, {_gb(model.size)}, every sha256 as pinned")


def check_dotenv(path: Path) -> Outcome:
    content = settings.content(path)
    if content is None:
        return skipped("there is no .env; the starter needs none")
    if faults := settings.faults(content):
        text = "; ".join(f"line {fault.line} {fault.text}" for fault in faults)
        return Outcome(FAIL, text, "edit .env; .env.example shows the form")
    return Outcome(OK, ".env is read alike by every tool")


def check_secrecy(path: Path) -> Outcome:
    if not path.exists():
        return skipped("there is no .env")
    for text, following in settings.exposures(path):
        return Outcome(FAIL, text, following)
    if why := settings.git_is_silent(path.parent):
        return Outcome(WARN, f"mode 600; whether git leaves it alone could not be looked at: {why}", "git status")
    return Outcome(OK, "mode 600, and git leaves it alone")


def _no_tomllib() -> Outcome:
    version = ".".join(map(str, sys.version_info[:2]))
    return skipped(f"Python {version} cannot read env/models.toml (3.11 can)")


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
