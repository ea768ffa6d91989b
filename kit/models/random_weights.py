"""A model of random weights in another model's shape, made here: what speed and memory depend on, without access.

Its sha256 is pinned like any model's: PCG64's raw bits are the same in every numpy (NEP 19 promises it of bit
generators), and what is made of them is arithmetic that rounds the same everywhere.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit import paths
from kit.errors import Command
from kit.files import Progress, silent, staged
from kit.formats import from_gguf, llama, safetensors
from kit.models import folder as model_folder
from kit.models import registry, starter
from kit.models.registry import Model

if TYPE_CHECKING:
    import numpy


NAME = "llama-3.2-1b-shape"
SEED = 0
# Llama's own start of a training: a standard deviation of 0.02. (Drawn evenly, whose half width is that much more.)
HALF_WIDTH = 0.02 * math.sqrt(3)
PIECE = 1 << 24  # weights at a time

# meta-llama/Llama-3.2-1B's config.json, but for the ids of the tokenizer that stands in.
CONFIG: dict[str, Any] = json.loads((paths.ROOT / "env" / f"{NAME}.json").read_text(encoding="utf-8"))

# The tokenizer is the starter's, padded; so is its licence.
COPIED = ("generation_config.json", "tokenizer_config.json", "LICENSE")


def ensure(model: Model, on_progress: Progress = silent) -> None:
    """Makes the model's folder whole. Needs the starter model, and no network.

    Safe to interrupt and to run twice at once. Raises KitError.
    """
    is_whole = partial(model_folder.is_whole, model)
    if is_whole():
        return
    starter.ensure(on_progress)
    again = (Command("download", MODEL=model.name),)
    wait = partial(on_progress, f"waiting for another process that makes {model.name}", 0)
    with staged(model.name, model.folder, again, is_whole, model.peak_disk, wait) as place:
        if place:
            place.mkdir()
            tokenizer = registry.find(starter.NAME).folder
            write(place, tokenizer, CONFIG, partial(on_progress, f"making {model.name}"))
            model_folder.move_into_place(model, place)


def write(
    folder: Path,
    tokenizer_folder: Path,
    config: dict[str, Any],
    on_progress: Callable[[float], None] = lambda share: None,
) -> None:
    """A model folder with random weights in the shape that `config` gives, and the other folder's tokenizer, padded."""
    from_gguf.write_json(folder / "config.json", config)
    tokenizer = padded(tokenizer_folder / "tokenizer.json", config["vocab_size"])
    from_gguf.write_json(folder / "tokenizer.json", tokenizer, indent=None)
    for name in COPIED:
        shutil.copyfile(tokenizer_folder / name, folder / name)
    write_weights(folder / "model.safetensors", config, on_progress)


def padded(path: Path, size: int) -> dict[str, Any]:
    """The tokenizer with tokens up to `size` that no text gives: nothing merges into them."""
    tokenizer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"<unused{token_id}>": token_id for token_id in range(len(vocabulary), size)}
    return tokenizer


def write_weights(path: Path, config: dict[str, Any], on_progress: Callable[[float], None]) -> None:
    """model.safetensors in bfloat16: ones for the norms, as when a training starts, random numbers elsewhere."""
    import numpy

    shapes = llama.shapes(config)
    total, done = sum(math.prod(shape) for shape in shapes.values()), 0
    values = table()
    bits = numpy.random.PCG64(SEED)
    with path.open("wb") as file:
        file.write(safetensors.header(shapes))
        for shape in shapes.values():
            size = math.prod(shape)
            for count in (min(PIECE, size - start) for start in range(0, size, PIECE)):
                if len(shape) == 1:
                    piece = safetensors.bfloat16(numpy.ones(count, dtype=numpy.float32))
                else:
                    drawn = bits.random_raw(-(-count // 4)).astype("<u8", copy=False).view("<u2")[:count]
                    piece = values[drawn]
                file.write(piece.astype("<u2", copy=False).data)
                done += count
                on_progress(done / total)


def table() -> numpy.ndarray:
    """The bfloat16 (as uint16) for each of 16 random bits: 65,536 values, evenly spaced around 0."""
    import numpy

    steps = (numpy.arange(65536, dtype=numpy.float32) - numpy.float32(32767.5)) / numpy.float32(32768)
    return safetensors.bfloat16(steps * numpy.float32(HALF_WIDTH))
