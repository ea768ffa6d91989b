"""Signs in to the Hub with the token from .env."""

from __future__ import annotations

import sys

import click

from kit import settings
from kit.errors import Command, KitError
from kit.hub import client as hub
from kit.hub.client import Token
from kit.hub.errors import NEW_TOKEN_PAGE
from kit.models import registry
from scripts import cli
from scripts.options import takes


@click.command()
@takes("login")
def login(model: str) -> None:
    """Sign in to the Hub with HF_TOKEN, and say whether it can read MODEL.

    \b
    cp .env.example .env && chmod 600 .env     # then write the token behind HF_TOKEN=
    make login
    """
    found = registry.find(model)
    if not hub.is_trusted(hub.endpoint()):
        raise KitError(
            f"{hub.endpoint()} is not https (or a proxy stands before it): a token is never sent there.",
            "a mirror needs none: ",
            Command("download"),
            "; to sign in to the Hub itself, unset HF_ENDPOINT",
        )
    token = hub.find_token() or ask()
    account = hub.account(token)
    hub.sign_in(token)
    cli.note(f"signed in as {account.name}, with a token of the scope {account.role} ({token.source})")
    if account.role == "write":
        cli.note("warning: this token may also write; one that only reads is enough, and does less harm when lost")
    if found.repo_id is None:
        cli.note(f"{found.name} does not come from the Hub: no access to it is needed")
        return
    hub.require_access(found, token if found.gated else None)
    cli.note(f"it can read {found.repo_id} at {found.revision[:12]}")
    cli.next_step(Command("download", MODEL=found.name))


def ask() -> Token:
    """The token, typed in hidden. Raises KitError where there is nobody to ask."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise KitError(
            "there is no token: HF_TOKEN is empty, in the environment and in .env.",
            f"1. make one that reads gated models: {NEW_TOKEN_PAGE}\n",
            f"  2. {settings.how_to_write('HF_TOKEN')}\n  3. ",
            Command("login"),
        )
    cli.note(f"No token yet. Make one that reads gated models: {NEW_TOKEN_PAGE}")
    return Token(click.prompt("Paste it (hidden)", hide_input=True, err=True).strip(), "what you typed")


if __name__ == "__main__":
    cli.main(login)
