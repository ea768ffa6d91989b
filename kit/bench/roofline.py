"""How fast this machine reads its memory, in bytes per second: what bounds the decoding of a token.

Each new token reads every weight once, so no framework decodes faster than bandwidth divided by the weights' bytes.
Measured as torch sums a tensor that no cache holds; of what was tried, the fastest reader here (docs/measurements.md).
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from kit.engines.torch_engine import WIDTHS
from kit.formats.gguf import GgufFile
from kit.formats.safetensors import read_headers
from kit.models.registry import Model

SIZE = 1 << 30  # bytes; the largest caches of today's processors hold less
TIMES = 8


def measure(device: str, size: int = SIZE) -> float:
    """Bytes per second that `device` (cpu or mps) reads: the median of several readings. Imports torch."""
    import torch

    values = torch.ones(size // 4, dtype=torch.float32, device=device)
    values.sum().item()  # the first one loads what sums
    seconds = []
    for _ in range(TIMES):
        start = time.perf_counter()
        # item() waits for the GPU: the clock is read when the sum is there.
        values.sum().item()
        seconds.append(time.perf_counter() - start)
    return values.numel() * 4 / statistics.median(seconds)


# --- How many bytes of weights a model reads for each new token ------------------------------------


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
