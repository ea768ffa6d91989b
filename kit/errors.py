"""The one kind of error that a person sees, and what no text that a person sees may hold."""

from __future__ import annotations

import re
from typing import Union

# A token of the Hub; what stands behind Bearer; user and password in an address; what signs a link.
SECRETS = re.compile(
    r"(?P<keep>\bbearer[\s:]+|://(?=[^/\s'\"]*@)"
    r"|[?&](?:x-(?:amz|goog)-[\w-]+|signature|sig|policy|key-pair-id|token|access_token|api_key|password|secret)=)"
    r"(?:(?<=://)[^/\s'\"]*(?=@)|(?<!://)[^\s'\"&]+)"
    r"|(?-i:\bhf_[\w.~+/=-]{8,})",
    re.IGNORECASE,
)
SHORTEST = 6  # characters of a secret's part; what is shorter may be a part of any word
_kept: set[str] = set()


def keep_secret(value: str) -> None:
    """From now on `washed` cuts this value out, and each part of it: a library quotes one with a line end escaped."""
    _kept.update(part for part in re.split(r"[^\w.~+/=-]+", value) if len(part) >= SHORTEST)


def washed(text: str) -> str:
    """The text without tokens, passwords and signatures, however a library wrote them into it."""
    for part in sorted(_kept, key=len, reverse=True):
        text = text.replace(part, "…")
    return SECRETS.sub(lambda found: (found["keep"] or "") + "…", text)


class Command:
    """A command to type: a verb of the Makefile (or several), and the variables that it is typed with.

    What it reads as is for scripts/hints.py to say: in the container another one does the same.
    """

    def __init__(self, verb: str, **variables: object) -> None:
        self.verb = verb
        self.variables = {name: str(value) for name, value in variables.items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Command) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.verb, *self.variables.items()))


Part = Union[str, Command]
Hint = tuple[Part, ...]


class KitError(Exception):
    """What happened and why, and what to type next.

    `message` is one or more lines, `hint` the next step: words, and commands among them.
    `status` is the exit status of a script that ends with it. Words of a library may stand in both: they are washed.
    """

    status = 1

    def __init__(self, message: str, *hint: Part) -> None:
        self.message = washed(message)
        self.hint: Hint = tuple(washed(part) if isinstance(part, str) else part for part in hint)
        super().__init__(self.message)


class WrongUsage(KitError):
    """The command was typed in a way that it does not take: an unknown name, a value out of range."""

    status = 2
