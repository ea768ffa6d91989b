"""The proof that this machine reproduces the reference."""

from __future__ import annotations

import json
from typing import Any

import click

from kit import paths, reports
from kit.engines.request import Request
from kit.models import registry
from kit.verify import readiness, stages
from kit.verify.stages import Stage, Verification
from scripts import cli
from scripts.options import (
    number_formats,
    option_device,
    option_dtype,
    option_json,
    option_method,
    option_model,
    option_quant,
)
from scripts.progress import ProgressLine


@click.command()
@option_model
@option_device
@option_dtype
@option_method
@option_json
@click.option("--record", is_flag=True, help="Write the reference of a model that has none, in float32 on this CPU.")
@click.option("--force", is_flag=True, help="With --record: replace the one that is there.")
@option_quant
@click.pass_context
def verify(
    context: click.Context,
    model: str,
    device: str,
    dtype: str,
    method: str,
    as_json: bool,
    record: bool,
    force: bool,
    quant: str,
) -> None:
    """Prove that this machine runs MODEL as the reference says: its files, its tokenizer, and its log-probabilities.

    Writes reports/manifest-*.json, and ends with the readiness code for whoever organises the room.

    \b
    make verify
    make verify MODEL=llama-3.2-1b DEVICE=mps
    make verify METHOD=llamacpp QUANT=q4_0
    """
    found = registry.find(model)
    dtype, quant = number_formats(context, method, dtype, quant)
    progress = ProgressLine()
    try:
        if record:
            stages.record(found, force, progress)
            progress.end()
            cli.note(f"env/golden/{model}.json is written: look at it, commit it, and others compare with it")
            return
        done = stages.verify(Request(found, "", method, device, dtype, quant=quant), progress)
    finally:
        progress.end()
    content = readiness.manifest(done)
    path = reports.write("manifest", content)
    # Before the result: the readiness code is the last line, on a terminal too.
    cli.note(f"the manifest: {path.relative_to(paths.ROOT)}")
    if as_json:
        cli.result(json.dumps(content, ensure_ascii=False) + "\n")
    else:
        show(done, content)
    if not done.ok:
        raise click.exceptions.Exit(1)


def show(done: Verification, content: dict[str, Any]) -> None:
    for stage in done.stages:
        cli.result(f"{'ok  ' if stage.ok else 'FAIL'}  {stage.name:9}  {stage.text}\n")
        for line in [*detail(stage), *stage.faults]:
            cli.result(f"{'':17}{line}\n")
    outcome = "verified" if done.ok else "NOT verified"
    cli.result(f"{outcome}: {done.model.name} on {done.device} in {done.dtype}, {done.method}\n")
    if done.failed:
        cli.result(f"  next: {following(done)}\n")
    cli.result(f"{content['readiness']}\n")


def detail(stage: Stage) -> list[str]:
    """How much of the greedy text is the same, and whether the margins explain what is not."""
    if stage.verdict is None:
        return []
    found = stage.verdict.replay
    same, tokens = sum(same for same, _ in found.common.values()), sum(tokens for _, tokens in found.common.values())
    lines = [f"greedy text: {same} of {tokens} tokens before the first other one of each prompt"]
    if found.flips:
        close = len(found.flips) - len(stage.verdict.unexplained)
        lines.append(f"{len(found.flips)} positions have another token first; {close} were as close in the reference")
    return lines


def following(done: Verification) -> str:
    name = done.failed.name if done.failed else ""
    if name == "hashes":
        return f"make download MODEL={done.model.name}" if done.model.repo_id else "make setup"
    if name == "tokenizer":
        return "make clean setup"
    if done.device == "mps" and name != "float32":
        return "make verify DEVICE=cpu; if that is verified, do not trust this GPU's answers, and report both manifests"
    return "make clean setup, then make verify; if it fails again: make compare A=… B=… with a manifest that is good"


if __name__ == "__main__":
    cli.main(verify)
