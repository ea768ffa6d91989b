"""The tensors of a model folder's safetensors files, read by numpy, which has no bfloat16.

The format is a length, a JSON header and the bytes: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import Command, KitError

if TYPE_CHECKING:
    import numpy


WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}
LONGEST_HEADER = 100_000_000  # bytes: the safetensors library's own limit


@dataclass(frozen=True)
class Tensor:
    """`dtype` is BF16, F16 or F32; `offset` is where its bytes begin in `path`."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.count * WIDTHS[self.dtype]


def read_headers(paths: Iterable[Path]) -> dict[str, Tensor]:
    """Every tensor by name. Raises KitError for a file that is none, and for a number format other than the three."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            with path.open("rb") as file:
                head = file.read(8)
                own = parse(path, head, file.read(header_length(path, head)))
                if any(tensor.offset + tensor.size > path.stat().st_size for tensor in own.values()):
                    raise _no_safetensors(path, "it is cut short")
                tensors |= own
        except OSError as error:
            raise _no_safetensors(path, error) from error
    return tensors


def header_length(path: Path, head: bytes) -> int:
    """How many bytes of header follow the first 8. Raises KitError."""
    try:
        (length,) = struct.unpack("<Q", head)
    except struct.error as error:
        raise _no_safetensors(path, error) from error
    if not 2 <= length <= LONGEST_HEADER:
        raise _no_safetensors(path, f"a header of {length} bytes")
    return int(length)


def parse(path: Path, head: bytes, header: bytes) -> dict[str, Tensor]:
    """The tensors of a file by its first 8 bytes and its header. Raises KitError as `read_headers` does."""
    start = 8 + header_length(path, head)
    tensors = {}
    try:
        for name, entry in json.loads(header).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in WIDTHS:
                raise KitError(f"{path.name} holds {name} in {entry['dtype']}; the kit reads {', '.join(WIDTHS)}.")
            tensor = Tensor(path, entry["dtype"], tuple(entry["shape"]), start + entry["data_offsets"][0])
            if tensor.size != entry["data_offsets"][1] - entry["data_offsets"][0]:
                raise ValueError(f"{name} has another size than its shape")
            tensors[name] = tensor
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _no_safetensors(path, error) from error
    return tensors


def _no_safetensors(path: Path, why: object) -> KitError:
    return KitError(f"{path} is not a safetensors file ({why}).", Command("doctor"))


class SafetensorsFile:
    """The tensors of one or more files, read into memory a tensor or some rows at a time.

    Not mapped: every page of a mapped file that was looked at would count as this process's memory (2.6 GB in place of
    0.3 at 1B, measured), and so into the peak of the run that writes its own file first.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.tensors = read_headers(paths)

    def bits(self, name: str) -> numpy.ndarray:
        """The tensor as it stands there, in its shape: bfloat16 as uint16."""
        return self.rows(name, 0, self.tensors[name].shape[0])

    def rows(self, name: str, start: int, end: int) -> numpy.ndarray:
        """The same for the rows (of a vector: the numbers) from `start` up to `end`."""
        import numpy

        tensor = self.tensors[name]
        width = math.prod(tensor.shape[1:])
        kind = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[tensor.dtype]
        offset = tensor.offset + start * width * WIDTHS[tensor.dtype]
        values = numpy.fromfile(tensor.path, kind, (end - start) * width, offset=offset)
        return values.reshape(end - start, *tensor.shape[1:])


def as_float32(bits: numpy.ndarray) -> numpy.ndarray:
    """What `bits` gave, or rows of it, as float32: a bfloat16 is a float32's upper half."""
    import numpy

    if bits.dtype == numpy.uint16:
        return (bits.astype(numpy.uint32) << 16).view(numpy.float32)
    return bits.astype(numpy.float32, copy=False)


def bfloat16(values: numpy.ndarray) -> numpy.ndarray:
    """The upper 16 bits of each float32, rounded to the nearest, ties to even: torch's own conversion, as uint16."""
    import numpy

    bits = numpy.ascontiguousarray(values).view(numpy.uint32)
    rounded = bits + (((bits >> 16) & 1) + numpy.uint32(0x7FFF))
    return (rounded >> 16).astype(numpy.uint16)


def header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """What stands in front of the tensors' bytes, in bfloat16 and in this order.

    (safetensors' own writer takes all tensors at once.)
    """
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        head[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text
