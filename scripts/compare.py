"""What differs between two reports."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from kit import reports
from kit.batch import compare as batch_compare
from kit.bench import compare as bench_compare
from kit.errors import Command, WrongUsage
from kit.reports import Difference
from scripts import cli
from scripts.hints import words
from scripts.options import takes

WIDTH, BEFORE = 60, 20  # characters of a value that are shown, and those of them before the first difference


@click.command()
@takes("compare")
def compare(a: str | None, b: str | None) -> None:
    """Print what differs between two reports, most important first. Exit status 0: the same; 1: different.

    Of two benches: what changed beyond the noise, and then what it may come from. Of two batches: each prompt whose
    completion differs, and from which token on. Without A and B it takes the two
    latest reports of a kind.

    \b
    make compare
    make compare A=reports/manifest-mine.json B=reports/manifest-hers.json
    """
    if not a and not b:
        a, b = map(str, reports.latest_two())
        cli.note(f"A={a} B={b}")
    if not a or not b:
        raise WrongUsage("A and B are both needed, or neither.", Command("compare"), " takes the two latest of a kind")
    one, other = reports.read(Path(a)), reports.read(Path(b))
    found: Iterable[Difference]
    if (one.kind, other.kind) == ("bench", "bench"):
        found = bench_compare.differences(one, other)
        if bench_compare.too_few_runs(one, other):
            enough = words([Command("bench", RUNS=5)])
            cli.note(f"warning: too few runs to tell a change from noise; {enough} has enough")
    elif (one.kind, other.kind) == ("batch", "batch"):
        found = batch_compare.differences(one, other)
    else:
        found = reports.compare(one, other)
    count = 0
    for difference in found:
        count += 1
        first, second = beside(difference.a, difference.b)
        cli.result(f"{difference.name}\n  A  {first}\n  B  {second}\n")
    said = "1 difference" if count == 1 else f"{count} differences"
    cli.note(said if count else "the same, in all that decides a result")
    if count:
        cli.note("exit status 1 says so, which make calls an error")
        raise click.exceptions.Exit(1)


def beside(a: Any, b: Any) -> tuple[str, str]:
    """Both values; of long ones what stands around the first place where they differ."""
    texts = as_text(a), as_text(b)
    pairs = enumerate(zip(*texts, strict=False))
    differ = next((place for place, (one, other) in pairs if one != other), min(map(len, texts)))
    start = max(0, differ - BEFORE) if max(map(len, texts)) > WIDTH else 0
    return cut(texts[0], start), cut(texts[1], start)


def as_text(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def cut(text: str, start: int) -> str:
    more = f" … ({len(text)} characters)" if len(text) > start + WIDTH else ""
    return f"{'… ' if start else ''}{text[start : start + WIDTH]}{more}"


if __name__ == "__main__":
    cli.main(compare)
