"""Forgets the token, for laptops that are lent."""

from __future__ import annotations

import click

from kit import hub, settings
from scripts import cli


@click.command()
def logout() -> None:
    """Sign out of the Hub: remove the token that `make login` stored."""
    removed = hub.sign_out()
    cli.note("signed out: the stored token is removed" if removed else "nobody was signed in")
    if settings.read().values.get("HF_TOKEN"):
        cli.note(".env still holds HF_TOKEN: remove it there too (make never touches .env)")


if __name__ == "__main__":
    cli.main(logout)
