"""What differs between two reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from kit import reports
from kit.bench import compare as bench_compare
from kit.errors import WrongUsage
from scripts import cli

WIDTH, BEFORE = 60, 20  # characters of a value that are shown, and those of them before the first difference


@click.command()
@click.option("--a", "first", envvar="A", metavar="REPORT", help="A report: reports/….json.")
@click.option("--b", "second", envvar="B", metavar="REPORT", help="Another of the same kind.")
def compare(first: str | None, second: str | None) -> None:
    """Print what differs between two reports, most important first. Exit status 0: the same; 1: different.

    Of two benches: what changed beyond the noise, and then what it may come from.

    \b
    make compare A=reports/manifest-mine.json B=reports/manifest-hers.json
    """
    if not first or not second:
        raise WrongUsage("A and B are both needed.", "make compare A=reports/one.json B=reports/other.json")
    a, b = reports.read(Path(first)), reports.read(Path(second))
    if (a.kind, b.kind) == ("bench", "bench"):
        found = bench_compare.differences(a, b)
        if bench_compare.too_few_runs(a, b):
            cli.note("warning: too few runs to tell a change from noise; make bench RUNS=5 has enough")
    else:
        found = reports.compare(a, b)
    for difference in found:
        first, second = beside(difference.a, difference.b)
        cli.result(f"{difference.name}\n  A  {first}\n  B  {second}\n")
    count = "1 difference" if len(found) == 1 else f"{len(found)} differences"
    cli.note(count if found else "the same, in all that decides a result")
    if found:
        raise click.exceptions.Exit(1)


def beside(a: Any, b: Any) -> tuple[str, str]:
    """Both values; of long ones what stands around the first place where they differ."""
    texts = as_text(a), as_text(b)
    pairs = enumerate(zip(*texts, strict=False))
    differ = next((place for place, (one, other) in pairs if one != other), min(map(len, texts)))
    start = max(0, differ - BEFORE) if max(map(len, texts)) > WIDTH else 0
    first, second = (cut(text, start) for text in texts)
    return first, second


def as_text(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def cut(text: str, start: int) -> str:
    more = f" … ({len(text)} characters)" if len(text) > start + WIDTH else ""
    return f"{'… ' if start else ''}{text[start : start + WIDTH]}{more}"


if __name__ == "__main__":
    cli.main(compare)
