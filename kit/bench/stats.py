"""Several measurements of one thing: median and range, and whether two such sets differ beyond the noise."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# With fewer runs chance does too much. Of two things that are the same, 5 ratios all lie on one side of 1 by chance
# 1 time in 16 (3: 1 in 4), and two ranges of 5 do not overlap 1 time in 126 (3: 1 in 10).
ENOUGH = 5


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float

    def overlaps(self, other: Spread) -> bool:
        return self.low <= other.high and other.low <= self.high


def of(values: Sequence[float]) -> Spread:
    """Of one value or more."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(a: Sequence[float], b: Sequence[float]) -> Spread:
    """a / b, turn by turn: both were measured in the same turns, so what slowed a turn slowed both."""
    return of([one / other for one, other in zip(a, b, strict=False)])


def is_noise(ratio: Spread) -> bool:
    """True where a ratio cannot be told from 1."""
    return ratio.low <= 1 <= ratio.high
