"""The story as a notebook, in JupyterLab, until Ctrl-C."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from kit.errors import Command, KitError
from kit.serve import notebook as story
from scripts import cli
from scripts.hints import words
from scripts.options import option_prepare, takes


@click.command()
@takes("notebook")
@option_prepare
@click.pass_context
def notebook(context: click.Context, prepare: bool, port: int) -> None:
    """Open docs/story.ipynb: what a language model does, in nine chapters to run and to change.

    It is written from docs/story.py where it is not there; what you change in it stays.

    \b
    make notebook
    make notebook PORT=8889
    """
    if context.get_parameter_source("port") is ParameterSource.DEFAULT:
        port = story.PORT
    if not prepare:
        story.require(port)
    if story.write():
        cli.note(
            "note: docs/story.ipynb is of an older story; for the new one, first: mv docs/story.ipynb docs/my.ipynb"
        )
    if prepare:
        lab = words([Command("notebook")])
        cli.note(f"docs/story.ipynb is here: open it in an editor, with .venv as its Python; or: {lab}")
        return
    cli.note("starting JupyterLab …")
    with story.running(port) as (child, address):
        if not story.has_screen():
            cli.note(f"without a screen here, type on your own machine: {story.tunnel(urlsplit(address).port)}")
        cli.note("the notebook, until Ctrl-C (the address holds its key):")
        cli.result(f"{address}\n")
        while child.poll() is None:
            time.sleep(0.5)
        if not child.returncode:  # as its menu can
            return
    raise KitError("JupyterLab ended by itself: .venv/jupyter/log has its words.", "the same command")


if __name__ == "__main__":
    cli.main(notebook)
