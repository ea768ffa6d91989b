"""A model for a browser, and for every program that speaks OpenAI's interface."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from kit.environment import machine
from kit.models import registry
from kit.serve import serve as serving
from scripts import cli
from scripts.options import option_prepare, takes
from scripts.progress import ProgressLine


@click.command()
@takes("serve")
@option_prepare
def serve(
    model: str,
    device: str,
    quant: str,
    prepare: bool,
    context_tokens: int | None,
    adapter: int,
    slots: int,
    listen: str,
    port: int,
) -> None:
    """Serve MODEL: a page that shows what it thinks, and OpenAI's interface, until Ctrl-C.

    \b
    make serve
    make serve MODEL=llama-3.2-1b SLOTS=4
    make serve LISTEN=0.0.0.0          # to a room: attendees need a browser
    """
    found = registry.find(model)
    found = found if adapter else found.foundation
    secret = serving.key()
    with ProgressLine() as progress:
        ready = serving.prepare(found, device, quant, slots, context_tokens, machine.this(), progress)
    if prepare:
        return
    cli.hold_signals()
    in_container = os.environ.get("KIT_CONTAINER") == "1"
    chosen = ready.engine.device
    cli.note(f"{found.name} on {chosen.name} ({chosen.reason}), {chosen.number_format} ({chosen.format_reason}) …")
    server = serving.start(ready, "0.0.0.0" if in_container else listen, port, secret)
    with serving.header_file(serving.header_folder(), server.port, secret) as header:
        outside = Path(os.environ.get("KIT_SERVE_NAME") or header.parent) / header.name
        say(ready, serving.url(listen, server.port), secret, str(outside))
        if listen in serving.EVERYWHERE:
            say_room(serving.url(listen, server.port), secret)
        cli.wait_for_end()
    server.abandon()
    cli.note("\nstopped")


def say(ready: serving.Ready, url: str, secret: str, header: str) -> None:
    """One line with the page's address, and two to paste; nothing in them is the key itself but the address."""
    cli.note(
        f"{ready.slots} request{'s' * (ready.slots > 1)} at a time, of {ready.context} tokens; Ctrl-C ends it. "
        "The page, curl, and OpenAI's clients:"
    )
    file = shlex.quote(header)
    asked = '{"prompt": "The capital of France is", "max_tokens": 20}'
    cli.result(f"{url}/#key={secret}\n")
    cli.result(f"curl -s -H @{file} {url}/v1/completions -d '{asked}'\n")
    cli.result(f"export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=$(cut -d' ' -f3 {file})  # model: {ready.model.name}\n")


def say_room(url: str, secret: str) -> None:
    import segno

    cli.note("everybody in this network who has the address can use it; the key travels readable (plain http)")
    if sys.stdout.isatty():
        segno.make(f"{url}/#key={secret}", error="l").terminal(compact=True)
        sys.stdout.flush()


if __name__ == "__main__":
    cli.main(serve)
