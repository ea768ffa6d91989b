"""The tensors of a model folder as a GGUF file has them: llama.cpp's names, its order of rows, its blocks.

Some rows at a time: memory holds a few pieces and not the model (0.15 GB at 1B, whatever the format).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from kit import cores
from kit.errors import KitError
from kit.plain_folder import LAYER_NAMES, TOP_NAMES
from kit.safetensors_file import SafetensorsFile, as_float32

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    import numpy
    from gguf import GGUFWriter

PIECE = 1 << 20  # numbers that a thread works on at a time


def names(source: SafetensorsFile, tied: bool) -> Iterator[tuple[str, str]]:
    """llama.cpp's name and transformers' of each tensor, layer by layer. Raises KitError for one without a name."""
    tops = {theirs: ours for ours, theirs in TOP_NAMES.items()}
    layers = {theirs: ours for ours, theirs in LAYER_NAMES.items()}
    found = []
    for own in source.tensors:
        stem, end = own.rsplit(".", 1)
        if own.endswith("rotary_emb.inv_freq") or (stem == "lm_head" and tied):
            continue  # computed anew; and a copy of the embedding
        parts = stem.split(".", 3)
        if stem in tops:
            found.append(((-1, stem), f"{tops[stem]}.{end}", own))
        elif parts[:2] == ["model", "layers"] and len(parts) == 4 and parts[3] in layers:
            found.append(((int(parts[2]), parts[3]), f"blk.{parts[2]}.{layers[parts[3]]}.{end}", own))
        else:
            raise KitError(f"the tensor {own} has no place in llama.cpp's Llama.", "make run METHOD=manual")
    for _, name, own in sorted(found):
        yield name, own


def append(writer: GGUFWriter, pieces: Iterable[numpy.ndarray]) -> None:
    """One tensor's bytes, piece by piece. (The writer's own write_tensor_data takes a whole tensor at once, and of a
    disk that is full it says how many numbers fitted, and not that it is full.)"""
    assert writer.fout  # its header is written
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    size = sum(file.write(piece.data) for piece in pieces)
    writer.write_padding(file, size)


def permute(values: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Rows of a query or key projection, from transformers' order (halves) to llama.cpp's (rotary pairs side by side).

    The inverse of plain_folder.unpermute. `values`: (heads * head_dim, hidden).
    """
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def encoded(
    source: SafetensorsFile, own: str, kind: Any, heads: int | None, pool: ThreadPoolExecutor
) -> Iterator[numpy.ndarray]:
    """A tensor as it stands in a GGUF file: a vector as float32, a matrix in llama.cpp's blocks, some rows at a time.

    A piece a thread (numpy lets go of the interpreter), and no more of them in memory than there is work for. With
    `heads` the rows are permuted first.
    """
    shape = source.tensors[own].shape
    if len(shape) == 1:
        yield as_float32(source.bits(own))
        return
    step = max(1, PIECE // shape[1])
    if heads:
        step = -(-step // (shape[0] // heads)) * (shape[0] // heads)  # whole heads
    started: deque[Future[numpy.ndarray]] = deque()
    for start in range(0, shape[0], step):
        end = min(start + step, shape[0])
        started.append(
            pool.submit(_blocks, source.rows(own, start, end), kind, heads and (end - start) * heads // shape[0])
        )
        if len(started) > cores.performance().count:
            yield started.popleft().result()
    for left in started:
        yield left.result()


def _blocks(bits: numpy.ndarray, kind: Any, heads: int | None) -> numpy.ndarray:
    import numpy
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    if heads:
        bits = permute(bits, heads)
    if kind == GGMLQuantizationType.BF16 and bits.dtype == numpy.uint16:
        return numpy.ascontiguousarray(bits)
    blocks: numpy.ndarray = quantize(as_float32(bits), kind)
    return blocks
