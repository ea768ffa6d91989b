"""A bundle, served to the machines around."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import click

from kit.errors import Command, KitError, WrongUsage
from kit.models import licence
from kit.net import address
from kit.offline import bundle
from kit.offline import mirror as bundle_mirror
from kit.offline.http_server import Exchange
from scripts import cli
from scripts.hints import words
from scripts.options import takes

LOGGED = 1_000_000  # bytes: smaller files come by the hundred


@click.command()
@takes("mirror")
def mirror(bundle: str, listen: str, port: int, allow_gated: bool) -> None:
    """Serve a bundle: wheels as a package index, models as a Hub, and all of it for `make setup BUNDLE=http://…`.

    Read-only, for any number of clients, until Ctrl-C.

    \b
    make mirror BUNDLE=dist/base-model-kit-0123456789ab LISTEN=0.0.0.0
    """
    if not bundle:
        hint = Command("bundle"), ", then: ", Command("mirror", BUNDLE="dist/<name>")
        raise WrongUsage("BUNDLE= names the folder to serve.", *hint)
    cli.note("checking the bundle")
    stock = bundle_mirror.shelf(Path(bundle).expanduser(), allow_gated)
    _say_duties(stock)
    cli.hold_signals()
    given = _Given()
    try:
        server = bundle_mirror.Mirror(stock, listen, port, given)
    except KitError as error:
        other = ("another port: ", Command("mirror", BUNDLE=bundle, PORT=another(port)))
        following = other if port else ("another LISTEN=",)
        raise KitError(
            error.message, *following, "; LISTEN= is an address of this machine, or 0.0.0.0 for all"
        ) from error
    with server:
        _say_lines(stock, server)
        cli.wait_for_end()
    cli.note(f"\nstopped: handed out {given.files} files, {given.sent / 1e9:.2f} GB")


def another(port: int) -> int:
    """A port to try next; those below 1024 are the administrator's."""
    return port + 1 if 1024 <= port < 65535 else 8080


class _Given:
    """Counts what was handed out whole, and names the larger files; neither queries nor headers."""

    def __init__(self) -> None:
        self.files, self.sent = 0, 0

    def __call__(self, exchange: Exchange) -> None:
        if exchange.method != "GET" or exchange.status not in (200, 206):
            return
        self.files, self.sent = self.files + 1, self.sent + exchange.sent
        if exchange.sent >= LOGGED:
            cli.note(f"{exchange.client} {unquote(exchange.path)!a} {exchange.sent / 1e6:.1f} MB")


def _say_duties(stock: bundle_mirror.Shelf) -> None:
    said = "is gated and is not handed out; ALLOW_GATED=1 does, and then its licence binds you"
    lines = [(model, said) for model in stock.kept_back]
    lines += [(model, f"is gated ({model.licence}) and is handed out by you") for model in stock.models if model.gated]
    for model, said in lines:
        duty = licence.duty(model)
        cli.note(f"{model.name} {said}" + (f":\n  {duty.sentence}" if duty else ""))


def _say_lines(stock: bundle_mirror.Shelf, server: bundle_mirror.Mirror) -> None:
    """What attendees type."""
    everywhere = server.host in ("0.0.0.0", "")
    host = (address.of_this_machine() or "<this machine's address>") if everywhere else server.host
    url = f"http://{host}:{server.port}"
    cli.note(
        f"serving {stock.folder} at {url} until Ctrl-C; {len(bundle.wheels_in(stock.sums))} wheels, models: "
        f"{', '.join(model.name for model in stock.models)}"
    )
    if server.host.startswith("127."):
        cli.note("only this machine reaches it; for its network: LISTEN=0.0.0.0")
    cli.result(f"with a clone:  {words([Command('setup', BUNDLE=url, SHA256=stock.digest)])}\n")
    for model in stock.models:
        # Without a token, which the client would send to any HF_ENDPOINT; and into a folder of its own, because its
        # cache knows a commit's files by the commit alone, and a mirror has some of them only.
        cli.result(
            f"with hf only:  HF_ENDPOINT={url} HF_HUB_DISABLE_IMPLICIT_TOKEN=1 "
            f"hf download {bundle_mirror.repo_id(model)} --local-dir {model.name}\n"
        )


if __name__ == "__main__":
    cli.main(mirror)
