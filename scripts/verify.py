"""The proof that this machine reproduces the reference."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from kit import reports
from kit.engines import generate
from kit.engines.request import Request
from kit.errors import Command, Hint, KitError, WrongUsage
from kit.models import registry
from kit.verify import readiness, stages
from kit.verify.stages import Stage, Verification
from scripts import cli
from scripts.hints import words
from scripts.options import number_formats, option_prepare, takes
from scripts.progress import ProgressLine


@click.command()
@takes("verify")
@option_prepare
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
    prepare: bool,
) -> None:
    """Prove that this machine runs MODEL as the reference says: its files, its tokenizer, and its log-probabilities.

    A model without a reference is held to itself: float32 on the CPU beside what is asked for. That is agreement.

    Writes reports/manifest-*.json, and ends with the readiness code for whoever organises the room.

    \b
    make verify
    make verify MODEL=llama-3.2-1b DEVICE=mps
    make verify METHOD=llamacpp QUANT=q4_0
    """
    found = registry.find(model)
    dtype, quant = number_formats(context, method, dtype, quant)
    with ProgressLine() as progress:
        if prepare:
            generate.prepare(Request(found, "prepared", method, device, dtype, quant=quant), progress)
            return
        if record:
            require_native(model)
            stages.record(found, force, progress)
            progress.end()
            cli.note(f"env/golden/{model}.json is written: look at it, commit it, and others compare with it")
            return
        done = stages.verify(Request(found, "", method, device, dtype, quant=quant), progress)
    content = readiness.manifest(done)
    written, trouble = "", None
    try:
        written = reports.write("manifest", content).name
    except KitError as error:  # said behind the result, which took a minute
        trouble = error
    if written:
        # Before the result: the readiness code is the last line, on a terminal too.
        cli.note(f"the manifest: reports/{written}")
    if as_json:
        cli.result(json.dumps(content, ensure_ascii=False) + "\n")
    else:
        show(done, content)
    if trouble:
        raise trouble
    if not done.ok:
        raise click.exceptions.Exit(1)


def require_native(model: str) -> None:
    """Raises WrongUsage in the container: the references are the clone's, and an image only reads them."""
    if os.environ.get("KIT_CONTAINER") == "1":
        hint = "on the machine itself: ", Command("verify", MODEL=model, RECORD=1)
        raise WrongUsage(
            "RECORD is for the native verb: the references are this clone's, and the image only reads them.", *hint
        )


def show(done: Verification, content: dict[str, Any]) -> None:
    for stage in done.stages:
        cli.result(f"{'ok  ' if stage.ok else 'FAIL'}  {stage.name:9}  {stage.text}\n")
        for line in [*detail(stage), *stage.faults]:
            cli.result(f"{'':17}{line}\n")
    agreement = done.proof == stages.AGREEMENT
    outcome = ("agreement, not reproduction" if agreement else "verified") if done.ok else "NOT verified"
    cli.result(f"{outcome}: {done.model.name} on {done.device} in {done.dtype}, {done.method}\n")
    if agreement and done.ok:
        record = words((Command("verify", MODEL=done.model.name, RECORD="1"),))
        cli.result(f"  there is no reference for it yet; {record} writes one, which others are held to\n")
    if done.failed:
        cli.result(f"  next: {words(following(done))}\n")
    cli.result(f"{content['readiness']}\n")


def detail(stage: Stage) -> list[str]:
    """How much of the greedy text is the same, and whether the margins explain what is not."""
    if stage.verdict is None:
        return []
    found = stage.verdict.replay
    same, tokens = sum(same for same, _ in found.common.values()), sum(tokens for _, tokens in found.common.values())
    lines = [f"greedy text: {same} of {tokens} tokens before the first other one of each prompt"] if tokens else []
    if found.flips:
        close = len(found.flips) - len(stage.verdict.unexplained)
        allowed = ", as rounding may do" if not stage.verdict.unexplained else ""
        where = "the reference" if tokens else "float32"
        lines.append(
            f"{len(found.flips)} positions have another token first{allowed}: {close} were as close in {where}"
        )
    return lines


def following(done: Verification) -> Hint:
    name, model = done.failed.name if done.failed else "", done.model
    if name == "hashes":
        return (Command("download", MODEL=model.name) if model.repo_id else Command("setup"),)
    if name == "tokenizer":
        return (Command("clean setup"),)
    if done.proof == stages.AGREEMENT and name == stages.FLOAT32:
        return (
            Command("run", MODEL="starter"),
            "  (these files are as pinned, and compute nothing: tell who made them)",
        )
    if done.device == "mps" and name != "float32":
        doubt = "; if that is verified, do not trust this GPU's answers, and report both manifests"
        return Command("verify", DEVICE="cpu"), doubt
    again, good = Command("verify"), Command("compare", A="…", B="…")
    return Command("clean setup"), ", then ", again, "; if it fails again: ", good, " with a manifest that is good"


if __name__ == "__main__":
    cli.main(verify)
