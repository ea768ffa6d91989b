"""A new section of env/models.toml, from the Hub."""

from __future__ import annotations

import click

from kit.errors import Command, WrongUsage
from kit.hub import add_model as new_model
from scripts import cli
from scripts.options import takes


@click.command(name="add_model")
@takes("add-model")
def add_model(repo: str | None, revision: str, name: str | None) -> None:
    """Write the section of env/models.toml for a model of the Hub: its commit, its files, their sha256.

    \b
    make add-model REPO=HuggingFaceTB/SmolLM2-360M NAME=smollm2-360m
    """
    if not repo or not name:
        raise WrongUsage("REPO and NAME are both needed.", Command("add-model", REPO="owner/name", NAME="short"))
    model = new_model.describe(repo, revision, name, lambda text: cli.note(f"note: {text}"))
    new_model.append(model)
    cli.result(new_model.section(model))
    cli.note(f"{name} is in env/models.toml: {model.kind}, {model.size / 1e9:.2f} GB, at {model.revision[:12]}")
    if model.gated and not model.licence_files:
        cli.note("warning: it is gated and has no licence file; the kit may not hand it on")
    cli.next_step("look at kind and licence, then: ", Command("download", MODEL=name))


if __name__ == "__main__":
    cli.main(add_model)
