"""The headline experiment: how long each method takes on each device, and how much memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from kit import reports
from kit.bench import conclusions, experiment
from kit.bench import plan as bench_plan
from kit.bench import plot as bench_plot
from kit.bench import quality as bench_quality
from kit.bench import table as bench_table
from kit.errors import Command, KitError
from kit.models import random_weights, registry
from scripts import cli
from scripts.options import option_prepare, takes
from scripts.progress import ProgressLine

RUN = [sys.executable, "-m", "scripts.run"]


def names(text: str) -> list[str]:
    """`cpu, mps` or `cpu mps` -> ["cpu", "mps"]"""
    return list(dict.fromkeys(text.replace(",", " ").split()))


@click.command()
@takes("bench")
@click.option("--tokens", type=click.IntRange(2, 4096), default=bench_plan.NEW_TOKENS, show_default=True, help="A run.")
@option_prepare
def bench(
    model: str,
    methods: str,
    devices: str,
    dtypes: str,
    quants: str,
    runs: int,
    quality: bool,
    tokens: int,
    prepare: bool,
    as_json: bool,
) -> None:
    """Time every method on every device, each run in a fresh process, and say what the numbers say.

    Lists have commas. Writes reports/bench-*.json, .md and .png; stdout gets the table.

    \b
    make bench
    make bench MODEL=llama-3.2-1b-shape METHODS=manual,llamacpp QUANTS=bf16,q4_0
    make bench QUALITY=1
    """
    found = registry.find(model)
    if quality:
        bench_quality.require_meaning(found)
    with ProgressLine() as progress:
        if found.is_random:
            random_weights.ensure(found, progress)
        plan = bench_plan.make(found, names(methods), names(devices), names(dtypes), names(quants), runs, tokens)
        bench_plan.prepare(plan, progress)
        if prepare:
            return
        done = experiment.run(plan, RUN, progress)
    trouble = measure_quality(done) if quality and not done.interrupted else None
    show(done, as_json)
    if trouble:
        raise trouble
    failed = [row for row in done.rows if row.failure]
    if failed:
        reasons = [f"{row.combination}: {row.failure}" for row in failed]
        stand = "the others stand; " if done.measured() else ""
        what = "\n  ".join([f"{len(failed)} of {len(done.rows)} rows failed:", *reasons])
        raise KitError(what, f"{stand}leave these out with METHODS, DEVICES, DTYPES or QUANTS")


def measure_quality(done: experiment.Bench) -> KitError | None:
    """What went wrong on the way, to be said when the times are written down: they took minutes."""
    try:
        with ProgressLine() as progress:
            bench_quality.measure(done, progress)
    except KeyboardInterrupt:
        return KitError("the quality was not measured to its end.", Command("bench", QUALITY="1"))
    except KitError as error:
        return error
    return None


def show(done: experiment.Bench, as_json: bool) -> None:
    content = experiment.content(done, conclusions.of(done))
    table = bench_table.markdown(content)
    # What took minutes is shown first: a disk may be full, or a picture fail.
    cli.result(experiment.as_json(content) + "\n" if as_json else table)
    report = reports.write("bench", content)
    cli.note(f"reports/{report.name}")
    forms: list[tuple[str, Callable[[Path], object]]] = [(".md", lambda path: path.write_text(table, encoding="utf-8"))]
    if done.measured():
        forms.append((".png", lambda path: bench_plot.draw(content, path)))
    for suffix, put in forms:
        cli.note(f"reports/{reports.write_beside(report, suffix, put).name}")


if __name__ == "__main__":
    cli.main(bench)
