"""The one kind of error that a person sees, and what no text that a person sees may hold."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import IO, Union
from urllib.parse import quote, unquote

# A token of the Hub; what stands behind Bearer; user and password in an address; what signs a link.
SECRETS = re.compile(
    r"(?P<keep>\bbearer[\s:]+|://(?=[^/\s'\"]*@)"
    r"|(?:[?&;]|%3f|%26)(?:x-(?:amz|goog)-[\w-]+|signature|sig|policy|key-pair-id|credential|jwt|auth"
    r"|(?:access_|security-|auth_?)?token|(?:api|auth|access)_?key|password|(?:client_)?secret)(?:=|%3d))"
    r"(?:(?<=://)[^/\s'\"]*(?=@)|(?<!://)[^\s'\"&]+)"
    r"|(?-i:\bhf_[\w.~+/=-]{8,})",
    re.IGNORECASE,
)
SHORTEST = 6  # characters of a secret's part; what is shorter may be a part of any word
# Variables whose value is one: HF_TOKEN, UV_INDEX_<NAME>_PASSWORD, and whatever else a shell holds.
NAMES_OF_SECRETS = re.compile(r"(?:^|_)(?:TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|SERVE_KEY|ACCESS_KEY)$", re.IGNORECASE)
_kept: set[str] = set()


def keep_secret(value: str) -> None:
    """From now on `washed` cuts this value out, as a library may quote it, and each part of it."""
    for form in {value.strip(), unquote(value.strip())}:
        data = form.encode("utf-8", "surrogateescape")
        quoted = (form, repr(form)[1:-1], repr(data)[2:-1], json.dumps(form)[1:-1], quote(data), quote(data, safe=""))
        parts = re.split(r"[^\w.~+/=-]+", form, flags=re.ASCII)
        _kept.update(part for part in (*quoted, *parts) if len(part) >= SHORTEST)


def keep_secrets(variables: Mapping[str, str]) -> None:
    """Keeps what the environment or .env holds of tokens, and of passwords and signatures in addresses."""
    for name, value in variables.items():
        if NAMES_OF_SECRETS.search(name):
            keep_secret(value)
            continue
        for match in SECRETS.finditer(value):
            keep_secret(match[0][len(match["keep"] or "") :])
        # A password is written as it is, with any character in it; a proxy without its scheme; and several addresses.
        for word in re.split(r"[\s,]+(?=\S*://)", value):
            before, at, _ = word.rpartition("@")
            _, scheme, account = before.rpartition("://")
            user, colon, password = account.partition(":")
            if at and (scheme or name.upper().endswith("_PROXY")):
                keep_secret(password if colon else user)  # or a token in the user's place
                keep_secret(base64.b64encode(unquote(account).encode("utf-8", "surrogateescape")).decode("ascii"))


def washed(text: str) -> str:
    """The text without tokens, passwords and signatures, however a library wrote them into it."""
    for part in sorted(_kept, key=len, reverse=True):
        text = text.replace(part, "…")
    return SECRETS.sub(lambda found: (found["keep"] or "") + "…", text)


def wash(stream: IO[str]) -> None:
    """From now on whatever is written to the stream is washed: a library's log and a traceback, too."""
    write = stream.write

    def write_washed(text: str) -> int:
        write(washed(text))
        return len(text)

    stream.write = write_washed  # type: ignore[method-assign]


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
