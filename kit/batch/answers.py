"""OUT: a file of answers, a line each, in the form of OpenAI's batches. It says by itself what it holds the answers to,
so that a batch that was ended goes on with what is missing.

Each `id` is `<IN>-<settings>-<line>`: eight hex digits of the sha256 of IN, eight of that of all that decides an
answer, and the number of the line in IN.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.batch.prompts import Extent, Line
from kit.engines.engine import Generated
from kit.engines.request import Request
from kit.errors import Command, Hint, KitError, WrongUsage
from kit.files import locked, trouble

ID = re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})-(\d+)")
DIGITS = 8
AGAIN: Hint = ("the same command",)


@dataclass
class Count:
    """What is in the file: `done` answers, of which `failed` are errors, and the completions' tokens."""

    done: int = 0
    failed: int = 0
    tokens: int = 0
    first_error: str = ""

    def add(self, answer: dict[str, Any]) -> None:
        self.done += 1
        if answer["error"]:
            self.failed += 1
            self.first_error = self.first_error or answer["error"]["message"]
        else:
            self.tokens += answer["response"]["body"]["usage"]["completion_tokens"]


class Answers:
    """OUT, open: what is there, and what is written behind it."""

    def __init__(self, file: io.RawIOBase, extent: Extent, settings: str, typed: Command) -> None:
        self._file, self._typed = file, typed
        self._name = typed.variables["OUT"]
        self._prefix = f"{extent.sha256[:DIGITS]}-{settings[:DIGITS]}-"
        self._there = bytearray(extent.numbers + 1)
        self.count = Count()
        self._read()

    def has(self, number: int) -> bool:
        """Whether the line of IN is answered."""
        return bool(self._there[number])

    def write(self, line: Line, came: Generated | str, ends: Sequence[int]) -> None:
        """An answer, or why there is none, at the end of the file; `ends` are the model's end tokens. Raises
        KitError."""
        answer: dict[str, Any] = {
            "id": f"{self._prefix}{line.number}",
            "custom_id": line.custom_id,
            "response": None,
            "error": None,
        }
        if isinstance(came, Generated):
            assert line.request
            answer["response"] = {"status_code": 200, "body": _body(answer["id"], line.request, came, ends)}
        else:
            answer["error"] = {"code": "invalid_request", "message": f"line {line.number}: {came}"}
        # Half a character in an id stays what it is in JSON: \\ud800.
        left = json.dumps(answer, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with trouble(self._name, AGAIN):
            while left:  # a disk that is almost full takes a part of it
                left = left[self._file.write(left) or 0 :]
        self._there[line.number] = 1
        self.count.add(answer)

    def _read(self) -> None:
        """What an earlier batch left. Raises WrongUsage where it is another's."""
        end = 0
        buffered = io.BufferedReader(self._file)
        lines = iter(buffered)
        for number, raw in enumerate(lines, 1):
            if not raw.endswith(b"\n"):
                self._mend(raw, end)
                break
            try:
                answer = json.loads(raw)
                line = self._ours(answer["id"])
                if self._there[line]:
                    raise self._refused(f"line {number} answers line {line} of IN a second time")
                self.count.add(answer)
                self._there[line] = 1
            except (ValueError, LookupError, TypeError) as error:
                raise self._refused(f"line {number} is no answer of a batch") from error
            end += len(raw)
        buffered.detach()  # or it would close the file with itself

    def _ours(self, name: str) -> int:
        """The line of IN that an answer is to."""
        digest, settings, _ = self._prefix.split("-")
        found = ID.fullmatch(name)
        if not found:
            raise ValueError(name)
        if found[1] != digest:
            raise self._refused("it has the answers to another IN")
        if found[2] != settings:
            raise self._refused("its answers are of another model, other settings or other versions")
        return int(found[3])

    def _mend(self, raw: bytes, end: int) -> None:
        """Cuts off a last line that was not finished, where it is one of ours."""
        ours = f'{{"id": "{self._prefix}'.encode()
        if not (raw.startswith(ours) or ours.startswith(raw)):
            raise self._refused("its last line is no answer of a batch")
        with trouble(self._name, AGAIN):
            self._file.seek(end)
            self._file.truncate()

    def _refused(self, why: str) -> WrongUsage:
        other = Path(self._name)
        again = Command("batch", IN=self._typed.variables["IN"], OUT=other.with_stem(f"{other.stem}-2"))
        return WrongUsage(f"OUT={self._name} is not written to: {why}.", "another file: ", again)


@contextmanager
def opened(path: Path, extent: Extent, settings: str, typed: Command) -> Iterator[Answers]:
    """OUT, for this process alone; `typed` is what made it. Raises WrongUsage where it has answers to something else,
    KitError where another process writes it, or it cannot be written."""
    name = typed.variables["OUT"]

    def refuse() -> None:
        raise KitError(f"another batch is writing {name}.", "wait until it is done")

    if path.exists() and not path.is_file():
        raise WrongUsage(f"OUT={name} is no file, in which what is done can be found again.", "OUT=answers.jsonl")
    with ExitStack() as held:
        with trouble(name, AGAIN):
            # One lock for all names of the file, and none that is left beside it.
            held.enter_context(locked(path, refuse))
            file = held.enter_context(path.open("r+b", buffering=0))
        yield Answers(file, extent, settings, typed)
        with trouble(name, AGAIN):
            os.fsync(file.fileno())


def read(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Each answer of a whole file: where it begins, the line of IN, and it. Raises WrongUsage."""
    try:
        with path.open("rb") as file:
            place = 0
            for raw in file:
                answer = json.loads(raw)
                yield place, int(answer["id"].rpartition("-")[2]), answer
                place += len(raw)
    except OSError as error:
        raise WrongUsage(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise WrongUsage(f"{path} has a line that is no answer of a batch.") from error


def _body(name: str, request: Request, came: Generated, ends: Sequence[int]) -> dict[str, Any]:
    ended = not came.token_ids or came.token_ids[-1] in ends
    prompt_tokens, tokens = len(came.prompt_ids), len(came.token_ids)
    return {
        "id": name,
        "object": "text_completion",
        "created": int(time.time()),
        "model": request.model.name,
        "prompt": request.prompt,
        "choices": [
            {
                "index": 0,
                "text": came.text,
                "token_ids": came.token_ids,
                "finish_reason": "stop" if ended else "length",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens},
    }
