"""What a bench's numbers say, in sentences: computed, so that they can disagree with what anybody expected."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import combinations, permutations

from kit.bench import published, stats
from kit.bench.experiment import Bench, Row
from kit.bench.stats import Spread
from kit.engines import methods
from kit.engines.engine import SIXTEEN_BITS

SPEED, WHOLE = "decode_tokens_per_s", "process_s"


def of(bench: Bench) -> list[str]:
    """A sentence each. Ratios are medians over the turns; one that cannot be told from 1 is called no difference."""
    rows = bench.measured()
    if rows and all(row.disturbed for row in rows):
        why = statistics.mode(bench.disturbances)
        return [
            f"No conclusion: in every turn others took the processors ({why}). On a quiet machine the same command has "
            "some."
        ]
    found = [*_of_one_framework(rows), *_devices(bench, rows), *_frameworks(rows), *_fastest(rows)]
    found += [*_ceiling(bench, rows), *_memory(rows)]
    if bench.runs_done < stats.ENOUGH:
        runs = "1 run is" if bench.runs_done == 1 else f"{bench.runs_done} runs are"
        found.append(f"{runs} too few to tell a difference from noise: RUNS=5 does.")
    if bench.disturbances:
        count = len(bench.disturbances)
        turns = "1 turn was" if count == 1 else f"{count} turns were"
        why = statistics.mode(bench.disturbances)
        found.append(f"{turns} disturbed ({why}) and left out of every figure and sentence.")
    return found


def _of_one_framework(rows: list[Row]) -> Iterator[str]:
    """Two methods of one framework, on the same device in the same number format: from the command to the end."""
    for one, other in combinations(rows, 2):
        a, b = one.combination, other.combination
        alike = (a.device, a.number_format) == (b.device, b.number_format) and a.method != b.method
        if not alike or _framework(one) != _framework(other):
            continue
        where = f"on {a.device} in {a.number_format}"
        ratio = stats.ratio(other.values(WHOLE), one.values(WHOLE))
        if stats.is_noise(ratio):
            times = f"{_median(one, WHOLE):.1f} s and {_median(other, WHOLE):.1f} s in all"
            yield f"{a.method} and {b.method} take the same time {where}: {times}."
        else:
            faster, slower = (one, other) if ratio.median > 1 else (other, one)
            yield (
                f"{faster.combination.method} is {_times(ratio)} as fast as {slower.combination.method} {where}: "
                f"{_median(faster, WHOLE):.1f} s against {_median(slower, WHOLE):.1f} s in all."
            )


def _devices(bench: Bench, rows: list[Row]) -> Iterator[str]:
    """MPS against the CPU, through PyTorch and through llama.cpp; and what follows when both are known."""
    if bench.plan.without_mps:
        yield (
            f"MPS against CPU stays open here ({bench.plan.without_mps}). The origin found MPS slower: "
            f"{published.SECONDS['manual', 'mps']} s against {published.SECONDS['manual', 'cpu']} s, manual, on an "
            f"{published.WHERE}."
        )
        return
    ratios = {}
    for framework in dict.fromkeys(engine.framework for engine in methods.ENGINES.values()):
        pairs = list(_pairs_by_device([row for row in rows if _framework(row) == framework]))
        if not pairs:
            continue
        on_mps, on_cpu = next((pair for pair in pairs if _is_reference(pair[0])), pairs[0])
        ratios[framework] = ratio = stats.ratio(on_mps.values(SPEED), on_cpu.values(SPEED))
        compared = f"{on_mps.combination.method}, {on_mps.combination.number_format}"
        if stats.is_noise(ratio):
            yield f"Through {framework} MPS decodes as fast as the CPU ({compared})."
        else:
            faster, slower = ("MPS", "the CPU") if ratio.median > 1 else ("the CPU", "MPS")
            yield f"Through {framework} {faster} decodes {_times(ratio)} as fast as {slower} ({compared})."
    # Nothing follows from a ratio that cannot be told from 1.
    if len(ratios) == 2 and not any(map(stats.is_noise, ratios.values())):
        own, other = ratios
        own_gains, other_gains = (ratio.median > 1 for ratio in ratios.values())
        yield {
            (False, True): "So where MPS is slow here, it is the framework, not the chip.",
            (False, False): "MPS is slower through both: here it is the chip, for one text at a time.",
            (True, True): "MPS is faster through both: on this machine the origin's conclusion does not hold.",
            (True, False): f"{own} gains from MPS here, and {other} does not.",
        }[own_gains, other_gains]


def _frameworks(rows: list[Row]) -> Iterator[str]:
    """The same chip and the same number of bits, through both; and what fewer bits add."""
    for device in dict.fromkeys(row.combination.device for row in rows):
        here = [row for row in rows if row.combination.device == device]
        reference = [row for row in here if _is_reference(row) and row.combination.number_format in SIXTEEN_BITS]
        if not reference:
            continue
        for row in (row for row in here if _framework(row) != _framework(reference[0])):
            ratio = stats.ratio(row.values(SPEED), reference[0].values(SPEED))
            alike = row.combination.number_format in SIXTEEN_BITS
            said = "the same chip and 16 bits in both: the framework" if alike else "the framework, and fewer bits"
            if stats.is_noise(ratio):
                yield f"On {device} {_name(row)} decodes as fast as {_name(reference[0])}."
            elif ratio.median > 1:
                yield f"On {device} {_name(row)} decodes {_times(ratio)} as fast as {_name(reference[0])}: {said}."
            else:
                yield f"On {device} {_name(reference[0])} decodes {_times(ratio)} as fast as {_name(row)}."


def _fastest(rows: list[Row]) -> Iterator[str]:
    for first, last in _ends({row: stats.of(row.values(WHOLE)) for row in rows}):
        yield (
            f"From the command to its end {_all(first, 'is', 'are')} the fastest ({_median(first[0], WHOLE):.1f} s), "
            f"and {_all(last)} the slowest ({_median(last[0], WHOLE):.1f} s)."
        )


def _ceiling(bench: Bench, rows: list[Row]) -> Iterator[str]:
    shares = {row: share for row in rows if (share := bench.share(row)) is not None}
    if shares:
        worst, best = (end(shares, key=shares.__getitem__) for end in (min, max))
        text = f"{best.combination} comes nearest to what this machine's memory allows ({shares[best]:.0%} of it)"
        yield text + (f"; {worst.combination} stays at {shares[worst]:.0%}." if worst is not best else ".")


def _memory(rows: list[Row]) -> Iterator[str]:
    # On the GPU its memory comes on top.
    held = {row: [run.peak_rss_bytes + (run.device_memory_bytes or 0) for run in row.counting] for row in rows}
    spreads = {row: stats.of(sizes) for row, sizes in held.items()}
    for least, most in _ends(spreads):
        low, high = (f"{spreads[rows[0]].median / 1e9:.2f} GB" for rows in (least, most))
        yield f"{_all(least, 'holds', 'hold')} the least memory ({low}), and {_all(most)} the most ({high})."


def _ends(spreads: dict[Row, Spread]) -> Iterator[list[list[Row]]]:
    """The rows with the least and with the most, each with those whose ranges overlap; none where these ones meet."""
    ends = [end(spreads, key=lambda row: spreads[row].median) for end in (min, max)] if spreads else []
    if ends and not spreads[ends[0]].overlaps(spreads[ends[1]]):
        near = {end: [row for row in spreads if row is not end and spreads[row].overlaps(spreads[end])] for end in ends}
        yield [[end, *rows] for end, rows in near.items()]


def _all(rows: list[Row], one: str = "", more: str = "") -> str:
    verb = one if len(rows) == 1 else more
    return " and ".join(str(row.combination) for row in rows) + (f" {verb}" if verb else "")


def _framework(row: Row) -> str:
    return methods.of(row.combination.method).framework


def _is_reference(row: Row) -> bool:
    return methods.of(row.combination.method) is methods.REFERENCE


def _pairs_by_device(rows: list[Row]) -> Iterator[tuple[Row, Row]]:
    for first, second in permutations(rows, 2):
        a, b = first.combination, second.combination
        if (a.device, b.device) == ("mps", "cpu") and (a.method, a.number_format) == (b.method, b.number_format):
            yield first, second


def _median(row: Row, name: str) -> float:
    return stats.of(row.values(name)).median


def _times(ratio: Spread) -> str:
    factor = max(ratio.median, 1 / ratio.median)
    return f"{factor:.2f} times" if factor < 1.1 else f"{factor:.1f} times"


def _name(row: Row) -> str:
    return f"{row.combination.method} in {row.combination.number_format}"
