"""What changed between two benches beyond their noise: what was measured first, then what it may come from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from kit import reports
from kit.bench import table as bench_table
from kit.bench.stats import ENOUGH, Spread
from kit.reports import Difference, Report

# Most important first.
MEASURED = "process_s decode_tokens_per_s first_token_s load_s import_s peak_rss_bytes device_memory_bytes".split()
QUALITY_MOVES = 0.01
CAUSES = ("model", "request", "facts")


def differences(a: Report, b: Report) -> list[Difference]:
    """Beyond the noise: the ranges of all runs do not overlap. (They were not measured in the same turns, so their
    ratio turn by turn says nothing.)
    """
    found = [*_measured(a.content, b.content), *_quality(a.content, b.content)]
    left, right = ({name: report.content.get(name, {}) for name in CAUSES} for report in (a, b))
    for one, other in ((left, right), (right, left)):  # a framework that one did not measure: its row says so above
        one["facts"] = {name: value for name, value in one["facts"].items() if name in other["facts"]}
    return [*found, *reports.differences(left, right)]


def too_few_runs(*reports: Report) -> bool:
    """True where a bench has so few runs that its range says nothing about its noise."""
    return any(report.content.get("runs_done", report.content["request"]["runs"]) < ENOUGH for report in reports)


def _measured(a: dict[str, Any], b: dict[str, Any]) -> Iterator[Difference]:
    left, right = ({bench_table.label(row): row for row in content["rows"]} for content in (a, b))
    for measure in MEASURED:
        for label in left:
            if label in right:
                a_and_b = (side[label]["summary"].get(measure) for side in (left, right))
                yield from _changed(f"{label}: {measure}", *a_and_b)
    for label in {**left, **right}:
        states = [(side[label]["failure"] or "measured") if label in side else None for side in (left, right)]
        if states[0] != states[1]:
            yield Difference(label, *states)
    for device in a["bandwidth"]:
        yield from _changed(f"bandwidth of {device}, bytes/s", a["bandwidth"][device], b["bandwidth"].get(device))


def _quality(a: dict[str, Any], b: dict[str, Any]) -> Iterator[Difference]:
    """No noise of turns is in it: other kernels alone move it, by less than that."""
    left, right = ({bench_table.label(row): row for row in content["quality"] or []} for content in (a, b))
    for label in left:
        for measure in ("perplexity", "top1_agreement"):
            if label in right and not math.isclose(left[label][measure], right[label][measure], rel_tol=QUALITY_MOVES):
                yield Difference(f"{label}: {measure}", *(f"{side[label][measure]:.4g}" for side in (left, right)))


def _changed(name: str, a: dict[str, float] | None, b: dict[str, float] | None) -> Iterator[Difference]:
    if a is None or b is None:
        return
    one, other = (Spread(each["median"], each["low"], each["high"]) for each in (a, b))
    if not one.overlaps(other):
        yield Difference(name, _shown(one), f"{_shown(other)}: {other.median / one.median:.2f} times")


def _shown(spread: Spread) -> str:
    return f"{spread.median:.4g} ({spread.low:.4g} to {spread.high:.4g})"
