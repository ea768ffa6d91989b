"""Forgets the token, for laptops that are lent."""

from __future__ import annotations

import os

import click

from kit import settings
from kit.hub import client as hub
from scripts import cli


@click.command()
def logout() -> None:
    """Sign out of the Hub: remove the token that `make login` stored."""
    removed = hub.sign_out()
    cli.note("signed out: the stored token is removed" if removed else "nobody was signed in")
    if others := hub.other_tokens():
        cli.note(f"the Hub client keeps other tokens, untouched: {', '.join(others)}; hf auth logout removes them")
    written = settings.read().values.get("HF_TOKEN")
    if written:
        cli.note(".env still holds HF_TOKEN: remove it there too (make never touches .env)")
    for name in ("HF_TOKEN", hub.OTHER_NAME):
        if os.environ.get(name) not in ("", None, written):
            cli.note(f"the environment still holds {name}: unset {name}, and look where your shell sets it")


if __name__ == "__main__":
    cli.main(logout)
