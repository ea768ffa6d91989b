"""What every verb shares: settings before options, one catch for errors, and the exit status.

0 done; 1 it failed, and the message says why and what to type next; 2 wrong usage.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from functools import reduce
from typing import NoReturn

import click

from kit import files, settings
from kit.errors import KitError, Part, WrongUsage, keep_secrets, wash, washed
from scripts.hints import words

INTERRUPTED = 130  # 128 + SIGINT, as shells count it
# EX_TEMPFAIL of sysexits.h: in the container, where models/ is read-only, a file has to be written first. env/docker.sh
# lets a service do that which may, and asks again.
TO_BE_PREPARED = 75


class OutputLost(Exception):
    """stdout takes no more: its reader is gone, or its disk is full."""


def main(command: click.Command) -> NoReturn:
    """Runs the command with this process's arguments, and ends the process."""
    open_closed_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has it ignored
            signal.signal(number, _end)
    for stream in (sys.stdout, sys.stderr):
        # The same bytes under every locale: LANG=C would refuse an emoji.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    keep_secrets(os.environ)
    wash(sys.stderr)
    status = _run(command)
    sys.stderr.flush()
    # Not sys.exit: all output is flushed, and taking torch apart costs 0.1 s more.
    os._exit(status)


class Ended(BaseException):
    """A signal asked the process to end: what it holds is given back on the way."""


def _end(number: int, _: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)
    raise Ended(number)


ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def hold_signals() -> None:
    """Before a server's threads begin, which inherit it: what asks it to end waits for `wait_for_end`.

    A handler would now and then miss the signal: one that comes just before the main thread blocks is not acted on
    until that thread wakes, which it never would.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)


def wait_for_end() -> None:
    """Returns when this process is asked to end."""
    signal.sigwait(ENDS)


def open_closed_streams() -> None:
    """What is closed (`>&-`, `2>&-`) has no stream in Python, and its number would go to the next file that is opened:
    stdout becomes one that takes nothing, stderr one that takes everything."""
    for name, number, mode in (("stdout", 1, os.O_RDONLY), ("stderr", 2, os.O_WRONLY)):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, mode)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8"))


def _run(command: click.Command) -> int:
    usage = f".venv/bin/python -m scripts.{command.name} --help"
    try:
        settings.clear_foreign()
        read = settings.read()
        keep_secrets(read.values)
        for warning in read.warnings:
            note(f"warning: {warning}")
        settings.apply(read)
        # What a verb that found something amiss ends with: `raise Exit(1)`.
        status = command.main(
            prog_name=f"python -m scripts.{command.name}", standalone_mode=False, default_map=_defaults(read)
        )
        result("")
        return status if isinstance(status, int) else 0
    except (OutputLost, BrokenPipeError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, BrokenPipeError):
            return 0  # `make -s run | head -1`: the reader has what it wanted
        why = getattr(cause, "strerror", cause)
        hint = "look where standard output goes (a full disk behind `>`?), then the same command"
        return say_error(KitError(f"the output could not be written: {why}.", hint))
    except (KeyboardInterrupt, click.Abort):
        note("\nstopped")
        return INTERRUPTED
    except Ended as ended:
        return 128 + int(ended.args[0])
    except click.UsageError as error:
        return say_error(WrongUsage(_plain(error.format_message()), usage))
    except WrongUsage as error:
        error.hint = error.hint or (usage,)
        return say_error(error)
    except KitError as error:
        if _is_to_be_prepared(error):
            return TO_BE_PREPARED
        return say_error(error)
    except OSError as error:
        what, mend = files.cause_of(error)
        return say_error(KitError(f"{what}.", f"{mend}, then the same command"))
    except Exception as error:  # the last net: a person gets a sentence, a developer the traceback
        text = str(error).strip() or "no further word"
        hint = "KIT_DEBUG=1 shows where; please report it"
        return say_error(KitError(f"unexpected {type(error).__name__}: {text}", hint))


def _is_to_be_prepared(error: KitError) -> bool:
    cause = error.__cause__
    return os.environ.get("KIT_CONTAINER") == "1" and isinstance(cause, OSError) and cause.errno == errno.EROFS


def _plain(message: str) -> str:
    """click's words for a number that is none, without its names of types."""
    words = {"a valid integer range": "a whole number", "a valid float range": "a number"}
    return reduce(lambda text, word: text.replace(word, words[word]), words, message)


def _defaults(read: settings.Settings) -> dict[str, str]:
    """.env's values under the names of the options' parameters; of none that counts only where it is typed."""
    known = [variable for variable in settings.VARIABLES if variable.verbs and variable.name in read.values]
    defaults = {variable.parameter: read.values[variable.name] for variable in known if not variable.typed}
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

        note(washed("".join(traceback.format_exception(error))), end="")
    following = words(error.hint)
    note(f"error: {error.message}" + (f"\n  next: {following}" if following else ""))
    return error.status


def next_step(*hint: Part) -> None:
    """A line of what to type next, after something that went well."""
    note(f"next: {words(hint)}")


def note(text: str, end: str = "\n") -> None:
    """A line for the person, on stderr: stdout holds the result and nothing else."""
    with contextlib.suppress(OSError):
        sys.stderr.write(washed(text) + end)
        sys.stderr.flush()
