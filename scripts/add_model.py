"""A new section of env/models.toml, from the Hub."""

from __future__ import annotations

import click

from kit.errors import WrongUsage
from kit.hub import add_model as new_model
from scripts import cli


@click.command(name="add_model")
@click.option("--repo", envvar="REPO", help="The repository on the Hub: owner/name.")
@click.option("--revision", envvar="REVISION", default="main", show_default=True, help="A commit, or a branch to pin.")
@click.option("--name", envvar="NAME", help="What the kit calls it: MODEL=name.")
def add_model(repo: str | None, revision: str, name: str | None) -> None:
    """Write the section of env/models.toml for a model of the Hub: its commit, its files, their sha256.

    \b
    make add-model REPO=HuggingFaceTB/SmolLM2-360M NAME=smollm2-360m
    """
    if not repo or not name:
        raise WrongUsage("REPO and NAME are both needed.", "make add-model REPO=owner/name NAME=short")
    section = new_model.describe(repo, revision, name)
    new_model.append(section)
    model = section.model
    cli.result(section.text())
    cli.note(f"{name} is in env/models.toml: {model.kind}, {model.size / 1e9:.2f} GB, at {model.revision[:12]}")
    if model.gated and not model.licence_files:
        cli.note("warning: it is gated and has no licence file; the kit may not hand it on")
    cli.note(f"look at kind and licence, then: make download MODEL={name}")


if __name__ == "__main__":
    cli.main(add_model)
