"""How fast this machine reads its memory, in bytes per second: what bounds the decoding of a token.

Each new token reads every weight once, so no framework decodes faster than bandwidth divided by the weights' bytes.
Measured as torch sums a tensor that no cache holds; of what was tried, the fastest reader here (docs/measurements.md).
"""

from __future__ import annotations

import statistics
import timeit

SIZE = 1 << 30  # bytes; the largest caches of today's processors hold less
TIMES = 8


def measure(device: str, size: int = SIZE) -> float:
    """Bytes per second that `device` (cpu or mps) reads: the median of several readings. Imports torch."""
    import torch

    values = torch.ones(size // 4, dtype=torch.float32, device=device)
    values.sum().item()  # the first one loads what sums
    # item() waits for the GPU: the clock is read when the sum is there.
    seconds = timeit.repeat(lambda: values.sum().item(), repeat=TIMES, number=1)
    return values.numel() * 4 / statistics.median(seconds)
