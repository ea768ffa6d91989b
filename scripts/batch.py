"""Many prompts, answered into a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NoReturn

import click

from kit import paths, reports
from kit.batch import batch as batching
from kit.batch.batch import Asked, Listener
from kit.engines import generate
from kit.engines.devices import Device
from kit.engines.request import Request
from kit.errors import Command, KitError, WrongUsage
from kit.models import registry
from scripts import cli
from scripts.options import number_formats, option_prepare, takes
from scripts.progress import ProgressLine


@click.command()
@takes("batch")
@option_prepare
@click.pass_context
def batch(
    context: click.Context,
    model: str,
    device: str,
    method: str,
    max_new_tokens: int,
    dtype: str,
    quant: str,
    temperature: float,
    seed: int,
    slots: int,
    source_file: str | None,
    target_file: str | None,
    order: bool,
    ray: str | None,
    prepare: bool,
) -> None:
    """Complete every prompt of IN, with the model loaded once, and write the answers to OUT.

    IN is a text with a prompt a line, or JSON Lines: {"prompt": …}, or OpenAI's batches for /v1/completions. OUT is
    JSON Lines. The same command goes on where it was stopped.

    \b
    make batch IN=prompts.txt OUT=answers.jsonl
    make batch IN=prompts.jsonl OUT=answers.jsonl METHOD=llamacpp SLOTS=8
    make batch IN=prompts.jsonl OUT=answers.jsonl METHOD=llamacpp RAY=auto
    """
    dtype, quant = number_formats(context, method, dtype, quant)
    found = registry.find(model)
    # A request needs a prompt: each line brings its own.
    request = Request(found, " ", method, device, dtype, max_new_tokens, temperature, seed, quant)
    progress = ProgressLine()
    if prepare:
        generate.prepare(request, progress)
        return
    if not source_file or not target_file:
        again = Command("batch", IN="prompts.txt", OUT="answers.jsonl")
        raise WrongUsage("IN (a file of prompts) and OUT (the file for the answers) are both needed.", again)
    names = os.environ.get("KIT_IN_NAME") or source_file, os.environ.get("KIT_OUT_NAME") or target_file
    typed = Command("batch", IN=names[0], OUT=names[1])
    asked = Asked(request, Path(source_file), Path(target_file), slots, order, typed, ray)

    def show_device(chosen: Device) -> None:
        progress.end()
        numbers = f"{chosen.number_format} ({chosen.format_reason})"
        cli.note(f"{found.name}: {method} on {chosen.name} ({chosen.reason}), {numbers} …")
        if slots > 1:
            cli.note(f"note: {slots} prompts at a time round otherwise than one: now and then a text goes another way")

    def lost(error: KitError) -> NoReturn:
        progress.end()
        cli.note(f"what is answered is in {names[1]}: the same command goes on")
        os._exit(cli.say_error(error))

    try:
        with progress:
            said = batching.batch(asked, Listener(show_device, progress, progress.note, lost))
    except (KeyboardInterrupt, cli.Ended, KitError) as error:
        if not isinstance(error, WrongUsage) and asked.target.is_file():
            cli.note(f"what is answered is in {names[1]}: the same command goes on")
        raise
    path = reports.write("batch", said)
    cli.note(summary(said))
    cli.note(f"written down: {path.relative_to(paths.ROOT)}")
    if failed := said["outcome"]["failed"]:
        cli.note(
            f"{failed} of {said['in']['prompts']} failed, and say why in {names[1]}; the first: {said['first_error']}"
        )
        raise click.exceptions.Exit(1)


def summary(said: dict[str, Any]) -> str:
    """A line of facts about a batch."""
    request, outcome = said["request"], said["outcome"]
    parts = [f"{outcome['answered']} of {said['in']['prompts']} prompts answered"]
    if before := said["before"]["done"]:
        parts.append(f"{before} of them before")
    if "tokens_per_s" in said:
        new = outcome["new_tokens"] - said["before"]["new_tokens"]
        parts.append(f"{new} tokens in {said['answering_s']:.1f} s ({said['tokens_per_s']:.1f} tokens/s)")
    parts.append(f"total {said['total_s']:.1f} s, peak memory {said['peak_rss_bytes'] / 1e6:.0f} MB")
    number_format = request["dtype"] or request["quant"]
    return f"[{said['model']['name']}, {request['device']}, {number_format}] " + ", ".join(parts)


if __name__ == "__main__":
    cli.main(batch)
