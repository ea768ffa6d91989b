"""The headline experiment: how long each method takes on each device, and how much memory."""

from __future__ import annotations

import sys

import click

from kit import reports
from kit.bench import conclusions, experiment, quality
from kit.bench import plan as bench_plan
from kit.bench import plot as bench_plot
from kit.bench import table as bench_table
from kit.engines import methods
from kit.errors import KitError
from kit.models import random_weights, registry
from scripts import cli
from scripts.options import option_json, option_model
from scripts.progress import ProgressLine, StepProgress

RUN = [sys.executable, "-m", "scripts.run"]


def names(text: str) -> list[str]:
    """`cpu, mps` or `cpu mps` -> ["cpu", "mps"]"""
    return list(dict.fromkeys(text.replace(",", " ").split()))


@click.command()
@option_model
@click.option("--methods", "method_list", envvar="METHODS", default=",".join(methods.NAMES), show_default=True)
@click.option(
    "--devices", "device_list", envvar="DEVICES", default="auto", show_default=True, help="auto: all that work."
)
@click.option("--dtypes", "dtype_list", envvar="DTYPES", default="", help="For pipeline and manual.  [default: auto]")
@click.option(
    "--quants",
    "quant_list",
    envvar="QUANTS",
    default="",
    help=f"For llamacpp.  [default: {','.join(bench_plan.USUAL['quant'])}; auto is the GGUF as shipped]",
)
@click.option(
    "--runs", envvar="RUNS", type=click.IntRange(1, 100), default=5, show_default=True, help="After a warm-up."
)
@click.option("--quality", "with_quality", envvar="QUALITY", is_flag=True, help="Perplexity and agreement too.")
@click.option(
    "--tokens", type=click.IntRange(2, 4096), default=bench_plan.NEW_TOKENS, show_default=True, help="New ones, a run."
)
@click.option(
    "--prepare", is_flag=True, hidden=True, help="Write the files that it needs, and no more: for the container."
)
@option_json
def bench(
    model: str,
    method_list: str,
    device_list: str,
    dtype_list: str,
    quant_list: str,
    runs: int,
    with_quality: bool,
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
    if with_quality:
        quality.require_meaning(found)
    progress = ProgressLine()
    try:
        if found.is_random:
            random_weights.ensure(found, progress)
        plan = bench_plan.make(
            found,
            names(method_list),
            names(device_list),
            names(dtype_list),
            names(quant_list),
            runs,
            tokens,
        )
        bench_plan.prepare(plan, progress)
    finally:
        progress.end()
    if prepare:
        return
    steps = StepProgress(f"bench of {model}")
    try:
        done = experiment.run(plan, RUN, steps)
    finally:
        steps.end()
    trouble = measure_quality(done, progress) if with_quality and not done.interrupted else None
    show(done, as_json)
    if trouble:
        raise trouble
    failed = [row for row in done.rows if row.failure]
    if failed:
        reasons = [f"{row.combination}: {row.failure}" for row in failed]
        stand = "the others stand; " if done.measured() else ""
        raise KitError(
            "\n  ".join([f"{len(failed)} of {len(done.rows)} rows failed:", *reasons]),
            f"{stand}leave these out with METHODS, DEVICES, DTYPES or QUANTS",
        )


def measure_quality(done: experiment.Bench, progress: ProgressLine) -> KitError | None:
    """What went wrong on the way, to be said when the times are written down: they took minutes."""
    try:
        quality.measure(done, progress)
    except KeyboardInterrupt:
        return KitError("the quality was not measured to its end.", "make bench QUALITY=1")
    except KitError as error:
        return error
    finally:
        progress.end()
    return None


def show(done: experiment.Bench, as_json: bool) -> None:
    content = experiment.content(done, conclusions.of(done))
    table = bench_table.markdown(content)
    report = reports.write("bench", content)
    reports.write_beside(report, ".md", lambda path: path.write_text(table, encoding="utf-8"))
    files = [report.name, report.with_suffix(".md").name]
    if done.measured():
        reports.write_beside(report, ".png", lambda path: bench_plot.draw(content, path))
        files.append(report.with_suffix(".png").name)
    cli.result(experiment.as_json(content) + "\n" if as_json else table)
    for name in files:
        cli.note(f"reports/{name}")


if __name__ == "__main__":
    cli.main(bench)
