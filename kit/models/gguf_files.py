"""Which numbers llama.cpp computes with: a model's GGUF file, as it was shipped or written here from its weights."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kit.errors import Command, WrongUsage
from kit.files import Progress, beside, sha256, silent, staged
from kit.formats import llama, to_gguf
from kit.formats.gguf import GgufFile
from kit.formats.llama_config import LLAMACPP
from kit.models import examine
from kit.models import folder as model_folder
from kit.models.registry import Model

NAMES = ("auto", *to_gguf.TYPES)
SHIPPED = "q4_1"  # the starter's
# Of the safetensors' bytes: a file of q8_0 holds 17 bytes for 32, of q4_0 9; and the tokenizer's, twice over.
SHARES = {"bf16": 1.0, "q8_0": 17 / 32, "q4_0": 9 / 32}
MARGIN = 50_000_000  # bytes


@dataclass(frozen=True)
class Quant:
    """`path` is the GGUF file, and `reason` why this one; `is_shipped` for a file that env/models.toml pins."""

    name: str
    path: Path
    reason: str
    is_shipped: bool = False

    @property
    def stamp(self) -> Path:
        return self.path.with_name(f".{self.path.name}.json")


def names(model: Model) -> tuple[str, ...]:
    """What can be asked for, `auto` among it."""
    return (*NAMES, SHIPPED) if _shipped(model) else NAMES


def _shipped(model: Model) -> str | None:
    """The GGUF file among the model's own."""
    return next((file.path for file in model.files if file.path.endswith(".gguf")), None)


def choose(model: Model, quant: str) -> Quant:
    """The file for what was asked: `auto` is the one that the model ships, else bf16. Raises WrongUsage."""
    if quant not in names(model):
        valid, example = ", ".join(names(model)), Command("run", METHOD="llamacpp", QUANT="bf16")
        raise WrongUsage(f"QUANT={quant} is unknown. Valid: {valid}.", example)
    shipped = _shipped(model)
    if shipped and quant in ("auto", SHIPPED):
        return Quant(SHIPPED, model.folder / shipped, "as shipped" if quant == "auto" else "asked for", is_shipped=True)
    name, reason = ("bf16", "the weights' own bits; no GGUF is shipped") if quant == "auto" else (quant, "asked for")
    return Quant(name, model.folder / f"{model.name}-{name}.gguf", reason)


def is_here(model: Model, quant: Quant) -> bool:
    """Whether the file is there, of these weights, and as it was written: cheap where its size and time say so."""
    if quant.is_shipped:
        return True  # a file of the model, checked with the others
    said = _read_stamp(quant)
    try:
        status = quant.path.stat()
    except OSError:
        return False
    if said.get("source") != _source(model):
        return False
    if [status.st_size, status.st_mtime_ns] == said.get("seen"):
        return True
    if status.st_size != said.get("size") or sha256(quant.path) != said.get("sha256"):
        return False
    _write_stamp(model, quant, said["sha256"])  # copied: another time, the same bytes
    return True


def ensure(model: Model, quant: Quant, on_progress: Progress = silent) -> bool:
    """Writes the file where it is not there, or is not of these weights. True where it was written.

    From weights that are proved, beside its name and then under it. Safe to interrupt and to run twice at once. Raises
    KitError where the model is not whole, or the file cannot be written.
    """
    model_folder.check(model)
    if is_here(model, quant):
        return False
    examine.require(model, LLAMACPP)
    what = f"writing {quant.path.name}"
    wait = partial(on_progress, f"waiting for another process: {what}", 0)
    again = (Command("gguf", MODEL=model.name, QUANT=quant.name),)
    need = size(model, quant) + MARGIN
    with staged(quant.path.name, quant.path, again, lambda: is_here(model, quant), need, wait) as place:
        if place is None:
            return False
        quant.stamp.unlink(missing_ok=True)
        weights = examine.weights(model)
        to_gguf.convert(model.folder, weights, model.title, quant.name, place, partial(on_progress, what))
        to_gguf.prove(model.folder, weights, quant.name, place, partial(on_progress, f"proving {quant.path.name}"))
        digest = sha256(place)
        place.replace(quant.path)
        _write_stamp(model, quant, digest)  # before the next one that waits looks
    return True


def size(model: Model, quant: Quant) -> int:
    """The file's bytes; of one that is not written yet, about as many as it will have."""
    if quant.path.exists():
        return quant.path.stat().st_size
    return int(examine.weights_bytes(model) * SHARES.get(quant.name, 1))


def bytes_per_token(model: Model, quant: Quant) -> int:
    """Bytes of weights that each new token reads; of a file that is not written yet, too."""
    if quant.path.exists():
        return llama.bytes_per_token(GgufFile(quant.path).sizes())
    return llama.bytes_per_token(to_gguf.sizes(model.folder, examine.weights(model), quant.name))


def digest(quant: Quant, model: Model) -> str:
    """The file's sha256, as it was recorded when it was written, or as it is pinned."""
    pinned = {file.path: file.sha256 for file in model.files}
    return pinned.get(quant.path.name) or str(_read_stamp(quant).get("sha256", ""))


def _source(model: Model) -> dict[str, Any]:
    """What the file depends on: another one of these, and it is written anew."""
    files = {file.path: file.sha256 for file in model.files if file.path.endswith((".safetensors", ".json", ".jinja"))}
    return {"converter": to_gguf.VERSION, "files": files}


def _write_stamp(model: Model, quant: Quant, digest: str) -> None:
    status = quant.path.stat()
    said = {"sha256": digest, "size": status.st_size, "seen": [status.st_size, status.st_mtime_ns]}
    # A folder that cannot be written does without: the file is hashed each time.
    with contextlib.suppress(OSError), beside(quant.stamp) as place:
        place.write_text(json.dumps({**said, "source": _source(model)}), encoding="utf-8")


def _read_stamp(quant: Quant) -> dict[str, Any]:
    try:
        said = json.loads(quant.stamp.read_text(encoding="utf-8"))
        return said if isinstance(said, dict) else {}
    except (OSError, ValueError):
        return {}
