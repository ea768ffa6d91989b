"""A tuned model as one plain folder, to hand on or to take elsewhere."""

from __future__ import annotations

import click

from kit.errors import Command, WrongUsage
from kit.models import licence, registry
from kit.tune import export as exporting
from scripts import cli
from scripts.options import takes
from scripts.progress import ProgressLine


@click.command()
@takes("export")
def export(model: str, name: str | None) -> None:
    """Write a tuned MODEL as one merged folder, dist/NAME/, for any program that reads plain models, and as GGUF.

    \b
    make export MODEL=mine
    make export MODEL=mine NAME=llama-mine
    """
    found = registry.find(model)
    if found.base is None and model == "starter":
        raise WrongUsage("MODEL is the tuned model to export.", Command("export", MODEL="starter-tuned"))
    with ProgressLine() as progress:
        done = exporting.export(found, name or model, progress)
    cli.note(f"dist/{done.folder.name}/: {done.size / 1e9:.2f} GB, in bfloat16, and {done.gguf.name} for llama.cpp")
    if found.base and (duty := licence.duty(found.base)):
        cli.note(f"{duty.shown}: {duty.sentence}")


if __name__ == "__main__":
    cli.main(export)
