"""How many bytes of weights a model reads for each new token, in a number format."""

from __future__ import annotations

from pathlib import Path

from kit.gguf_file import GgufFile
from kit.registry import Model
from kit.safetensors_file import read_headers

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
EMBEDDINGS = ("model.embed_tokens.weight", "token_embd.weight")
HEADS = ("lm_head.weight", "output.weight")


def of_torch(model: Model, dtype: str) -> int:
    """Bytes per token through transformers: every weight once, in `dtype`; of an embedding that is not the head too, a
    row.
    """
    paths = [model.folder / file.path for file in model.files if file.path.endswith(".safetensors")]
    return _sum({name: tensor.count * WIDTHS[dtype] for name, tensor in read_headers(paths).items()})


def of_gguf(path: Path) -> int:
    """The same through llama.cpp, in the formats that the file holds."""
    return _sum(GgufFile(path).sizes())


def _sum(sizes: dict[str, int]) -> int:
    untied = any(name in sizes for name in HEADS)
    return sum(size for name, size in sizes.items() if not (untied and name in EMBEDDINGS))
