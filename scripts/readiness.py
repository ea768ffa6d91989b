"""A room at a glance, from its attendees' codes."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kit.errors import Command, WrongUsage
from kit.models import registry
from kit.verify.readiness import AGREES, judge
from scripts import cli
from scripts.options import takes

USAGE = Command("readiness", CODES="codes.txt")


@click.command()
@takes("readiness")
def readiness(codes: str | None) -> None:
    """Print who is ready and who is not, and why. Exit status 0: everybody; 1: not everybody.

    Each line of FILE is a name and the code that `make verify` printed for them; # begins a comment.

    \b
    make readiness CODES=codes.txt
    """
    if not codes:
        raise WrongUsage("CODES names no file.", USAGE)
    try:
        text = sys.stdin.read() if codes == "-" else Path(codes).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise WrongUsage(f"CODES={codes} cannot be read: {error.strerror}.", USAGE) from error
    # A byte-order mark, as Windows writes it, is no part of the first name.
    attendees = judge(text.removeprefix("\ufeff").splitlines(), registry.read())
    if not attendees:
        hint = "a name and the last line of ", Command("verify"), ", a line each"
        raise WrongUsage(f"CODES={codes} has no line with a code.", *hint)
    width = max(len(attendee.name) for attendee in attendees)
    for attendee in sorted(attendees, key=lambda attendee: attendee.ready):
        code = attendee.code
        where = f"{code.model} on {code.device} in {code.dtype}, {code.platform}" if code else ""
        where += ", without a reference" if code and code.outcome == AGREES else ""
        state = "ready" if attendee.ready else "NOT  "
        cells = [f"{attendee.name:{width}}", state, where, "; ".join(attendee.reasons)]
        cli.result("  ".join(filter(None, cells)) + "\n")
    ready = sum(attendee.ready for attendee in attendees)
    cli.result(f"{ready} of {len(attendees)} ready\n")
    if ready < len(attendees):
        cli.note("exit status 1 says that not everybody is, which make calls an error")
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    cli.main(readiness)
