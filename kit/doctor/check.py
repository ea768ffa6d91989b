"""What the doctor says: a Check each, in three states.

Standard library only, and parsed by Python 3.9: the first stage runs before there is an environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kit.errors import Hint, KitError, Part, washed

OK, WARN, FAIL = "ok", "WARN", "FAIL"


class Outcome:
    """What a check found: `state`, a line of `text`, and the `next` step (none where there is nothing to do).

    A check that has nothing to look at is ok, and its text begins with "skipped: " and the reason.
    """

    def __init__(self, state: str, text: str, *following: Part) -> None:
        self.state, self.text = state, washed(text)
        self.next = tuple(washed(part) if isinstance(part, str) else part for part in following)


@dataclass(frozen=True)
class Check:
    """One finding under its stable id: docs/troubleshooting.md has a heading for each."""

    id: str
    name: str
    state: str
    text: str
    next: Hint


# (id, name, what looks)
Listed = tuple[str, str, Callable[[], Outcome]]


def run(listed: list[Listed]) -> Iterator[Check]:
    """Runs every check in turn, whatever the one before it found; one that breaks is a FAIL of its own."""
    for number, name, look in listed:
        try:
            outcome = look()
        except KitError as error:
            outcome = Outcome(FAIL, error.message, *error.hint)
        except Exception as error:
            text = f"the check itself failed: {type(error).__name__}: {error}"
            outcome = Outcome(FAIL, text, "please report it")
        yield Check(number, name, outcome.state, outcome.text, outcome.next)


def skipped(reason: str) -> Outcome:
    return Outcome(OK, f"skipped: {reason}")
