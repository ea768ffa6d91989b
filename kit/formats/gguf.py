"""A GGUF file: its metadata and its tensors.

gguf.GGUFReader takes 4.7 s to open the starter's file, because it makes numpy slices of each of its 98,369 vocabulary
and merge strings. This reads the same header in 0.06 s; the blocks' numbers are still decoded by the gguf package.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import Command, KitError

if TYPE_CHECKING:
    import numpy


MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
REPAIR = "remove it, then: ", Command("setup")

# gguf_metadata_value_type -> struct format; 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor's blocks lie. `shape` is in numpy's order: rows first."""

    name: str
    shape: tuple[int, ...]
    block_type: int
    offset: int


class GgufFile:
    """An open GGUF file: `metadata` by key, `tensors` by name, in file order.

    Raises KitError where the file is not GGUF, or ends too early.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._position = 0
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, IndexError, KeyError) as error:
            raise KitError(f"{path} is cut short or damaged ({error}).", *REPAIR) from error

    def _read_header(self) -> None:
        if self._bytes[:4] != MAGIC:
            raise KitError(f"{self.path} is not a GGUF file.", *REPAIR)
        self._position = 4
        version = self._scalar("I")
        if version not in VERSIONS:
            raise KitError(f"{self.path} is GGUF version {version}; the kit reads versions 2 and 3.")
        tensor_count, key_count = self._scalar("Q"), self._scalar("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("I"))
        headers = [self._tensor_header() for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        start = -(-self._position // alignment) * alignment
        self.tensors = {
            name: GgufTensor(name, shape, block_type, start + offset) for name, shape, block_type, offset in headers
        }

    def _scalar(self, form: str) -> Any:
        value = struct.unpack_from("<" + form, self._bytes, self._position)[0]
        self._position += struct.calcsize("<" + form)
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        end = self._position + length
        if end > len(self._bytes):
            raise IndexError("a string runs past the end")
        text = self._bytes[self._position : end].decode("utf-8")
        self._position = end
        return text

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            item_kind, length = self._scalar("I"), self._scalar("Q")
            return [self._value(item_kind) for _ in range(length)]
        return self._scalar(SCALARS[kind])

    def _tensor_header(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dimensions = self._scalar("I")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))
        return name, shape[::-1], self._scalar("I"), self._scalar("Q")

    def sizes(self) -> dict[str, int]:
        """The bytes of each tensor."""
        return {name: self._size(tensor)[0] for name, tensor in self.tensors.items()}

    def _size(self, tensor: GgufTensor) -> tuple[int, int]:
        """The bytes of a tensor, and those of one of its rows."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        block_elements, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.block_type)]
        row_bytes = tensor.shape[-1] // block_elements * block_bytes
        return math.prod(tensor.shape[:-1]) * row_bytes, row_bytes

    def rows(self, name: str, start: int, end: int) -> numpy.ndarray:
        """The bytes of a tensor's rows (of a vector: its numbers) from `start` up to `end`, a row each."""
        import numpy

        tensor = self.tensors[name]
        size, row_bytes = self._size(tensor)
        if len(tensor.shape) == 1:
            row_bytes //= tensor.shape[0]
        if tensor.offset + size > len(self._bytes):
            raise KitError(f"{self.path} ends before its tensor {name} does.", *REPAIR)
        offset = tensor.offset + start * row_bytes
        flat = numpy.fromfile(self.path, numpy.uint8, (end - start) * row_bytes, offset=offset)
        return flat.reshape(end - start, row_bytes)

    def close(self) -> None:
        self._bytes.close()

    def decode(self, name: str) -> numpy.ndarray:
        """Tensor `name` as float32, in its shape (rows first)."""
        import numpy
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        size, row_bytes = self._size(tensor)
        if tensor.offset + size > len(self._bytes):
            raise KitError(f"{self.path} ends before its tensor {name} does.", *REPAIR)
        blocks = numpy.frombuffer(self._bytes, dtype=numpy.uint8, count=size, offset=tensor.offset)
        blocks = blocks.reshape(*tensor.shape[:-1], row_bytes)
        values: numpy.ndarray = dequantize(blocks, GGMLQuantizationType(tensor.block_type))
        return values.astype(numpy.float32, copy=False)
