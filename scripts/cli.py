"""What every verb shares: settings before options, one catch for errors, and the exit status.

0 done; 1 it failed, and the message says why and what to type next; 2 wrong usage.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

import click

from kit import settings
from kit.errors import KitError, WrongUsage

INTERRUPTED = 130  # 128 + SIGINT, as shells count it


class OutputLost(Exception):
    """stdout takes no more: its reader is gone, or its disk is full."""


def main(command: click.Command) -> NoReturn:
    """Runs the command with this process's arguments, and ends the process."""
    for stream in (sys.stdout, sys.stderr):
        # The same bytes under every locale: LANG=C would refuse an emoji.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    status = _run(command)
    sys.stderr.flush()
    # Not sys.exit: all output is flushed, and taking torch apart costs 0.1 s more.
    os._exit(status)


def _run(command: click.Command) -> int:
    try:
        read = settings.read()
        for warning in read.warnings:
            note(f"warning: {warning}")
        settings.apply(read)
        command.main(prog_name=f"python -m scripts.{command.name}", standalone_mode=False, default_map=_defaults(read))
        result("")
    except (OutputLost, BrokenPipeError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, BrokenPipeError):
            return 0  # `make -s run | head -1`: the reader has what it wanted
        return say_error(KitError(f"the output could not be written: {cause}"))
    except (KeyboardInterrupt, click.Abort):
        note("\nstopped")
        return INTERRUPTED
    except click.UsageError as error:
        return say_error(WrongUsage(error.format_message(), f"python -m scripts.{command.name} --help"))
    except KitError as error:
        return say_error(error)
    except Exception as error:  # the last net: a person gets a sentence, a developer the traceback
        text = str(error).strip() or "no further word"
        return say_error(
            KitError(f"unexpected {type(error).__name__}: {text}", "KIT_DEBUG=1 shows where; please report it")
        )
    return 0


def _defaults(read: settings.Settings) -> dict[str, str]:
    """.env's values under the options' names."""
    defaults = {name.lower(): value for name, value in read.values.items()}
    if "PROMPT_FILE" in os.environ:
        defaults.pop("prompt", None)
    return defaults


def result(text: str) -> None:
    """Writes to stdout at once: the result and nothing else."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise OutputLost from error


def say_error(error: KitError) -> int:
    """Prints the error on stderr (its traceback with KIT_DEBUG=1) and returns its exit status."""
    if os.environ.get("KIT_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    hint = "\n  next: ".join(["", *filter(None, [error.hint])])
    note(f"error: {error.message}{hint}")
    return error.status


def note(text: str, end: str = "\n") -> None:
    """A line for the person, on stderr: stdout holds the result and nothing else."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text + end)
        sys.stderr.flush()
