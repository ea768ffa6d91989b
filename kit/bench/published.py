"""What the write-up that the kit grew from measured, as it says it: quoted, not measured here."""

from __future__ import annotations

from dataclasses import dataclass

WHERE = "M1 MacBook Air (2020, 8 GB), Llama 3.2 1B, bfloat16"


@dataclass(frozen=True)
class Quoted:
    """`seconds` in all, to 50 tokens (manual) or the pipeline's own length."""

    method: str
    device: str
    seconds: float


FIGURES = (
    Quoted("pipeline", "cpu", 6),
    Quoted("pipeline", "mps", 8),
    Quoted("manual", "cpu", 6),
    Quoted("manual", "mps", 10),
)
