"""IN: a file of prompts, a line each, read as it is needed.

A line of a `.jsonl` file has the form of OpenAI's batches (`custom_id, method, url, body`, for `/v1/completions`) or
the short one (`prompt`, and where they are wanted `id`, `max_new_tokens`, `temperature`, `seed`). Of every other file
each line is a prompt. Blank lines are none.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kit.engines.request import Request
from kit.errors import Command, KitError, WrongUsage
from kit.files import Progress, cause_of

LONGEST = 16 << 20  # bytes of a line
SHOWN = 64 << 20  # bytes of a file from which on it shows how far the look through it is
SPECIAL = 8  # tokens that a tokenizer may put around a text; each other one has a byte of it at least
COUNTED = 1024  # tokens: what may be longer is tokenized, to keep no room for bytes
URL = "/v1/completions"
BATCH_FIELDS = {"custom_id", "method", "url", "body"}
# The short form's names for what a body calls otherwise.
SHORT = {"max_new_tokens": "max_tokens", "id": "custom_id"}
TAKEN = {"prompt", "model", "max_tokens", "temperature", "seed"}
# What else a body may have, as long as it asks for what happens anyway.
USUAL: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "echo": False,
    "stream": False,
    "stream_options": None,
    "top_p": 1,
    "top_k": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logprobs": None,
    "logit_bias": None,
    "stop": None,
    "suffix": None,
}
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Line:
    """A line with a prompt: its `number` in the file, from 1 on; the `request`, or the `error` that makes it none."""

    number: int
    custom_id: str | None
    request: Request | None
    error: str = ""


@dataclass(frozen=True)
class Extent:
    """What a look through the file found: its `sha256`, its `lines` with a prompt, how many `numbers` it has (blank
    ones too), and the `longest` text that fits, prompt and completion together: in tokens, or more."""

    sha256: str
    lines: int
    numbers: int
    longest: int


def look_through(path: Path, asked: Request, on_progress: Progress, fit: Callable[[Request], Sequence[int]]) -> Extent:
    """Reads the file once, whole; `fit` is the engine's. Raises WrongUsage where it cannot be read, or holds no
    prompt."""
    if not path.is_file():
        why = "is a folder" if path.is_dir() else "is no file" if path.exists() else "is not there"
        raise WrongUsage(f"IN={path} {why}.", Command("batch", IN="prompts.jsonl", OUT="answers.jsonl"))
    digest, size, done = hashlib.sha256(), path.stat().st_size, 0
    count = number = longest = 0
    for number, raw in _raw_lines(path, digest):
        done += len(raw)
        if size > SHOWN:
            on_progress(f"reading {path.name}", min(done, size), size, "B")
        if line := parse(number, raw, path, asked):
            count += 1
            if line.request:
                longest = max(longest, _length(line.request, fit))
    if not count:
        raise WrongUsage(f"IN={path} has no prompt in it.", 'a line of it: {"prompt": "The capital of France is"}')
    return Extent(digest.hexdigest(), count, number, longest)


def _length(request: Request, fit: Callable[[Request], Sequence[int]]) -> int:
    """Tokens at most; 0 of one that does not fit: it is an error in its place, and no room is kept for it."""
    most = len(request.prompt.encode()) + SPECIAL + request.max_new_tokens
    if most <= COUNTED:
        return most
    try:
        return len(fit(request)) + request.max_new_tokens
    except KitError:
        return 0


def read(path: Path, asked: Request) -> Iterator[Line]:
    """The lines with a prompt. `asked` has what a line does not say of itself."""
    for number, raw in _raw_lines(path):
        if line := parse(number, raw, path, asked):
            yield line


def _raw_lines(path: Path, digest: Any = None) -> Iterator[tuple[int, bytes]]:
    """Each line and its number; of one that is too long, more than LONGEST bytes of it."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LONGEST + 1):
                number += 1
                rest = raw
                while rest and not rest.endswith(b"\n"):
                    if digest:
                        digest.update(rest)
                    rest = file.readline(LONGEST)
                if digest:
                    digest.update(rest)
                yield number, raw
    except OSError as error:
        cause, mend = cause_of(error)
        raise KitError(f"IN={path} cannot be read: {cause}.", mend) from error


def parse(number: int, raw: bytes, path: Path, asked: Request) -> Line | None:
    """A line of the file; None for a blank one."""
    if len(raw) > LONGEST:
        return Line(number, None, None, f"the line has more than {LONGEST >> 20} MB")
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return Line(number, None, None, f"the line is not UTF-8 text (byte {error.start})")
    if not text.strip():
        return None
    if path.suffix != ".jsonl":
        return Line(number, None, replace(asked, prompt=text))
    custom_id = None
    try:
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError("the line is JSON, and no object: {…}")
        custom_id, body = _body(document)
        return Line(number, custom_id, _request(body, asked))
    except json.JSONDecodeError as error:
        return Line(number, None, None, f"the line is not JSON: {error.msg} (character {error.colno})")
    except RecursionError:
        return Line(number, None, None, "the line is not JSON that can be read: it is nested too deep")
    except ValueError as error:
        return Line(number, custom_id, None, str(error))


def _body(document: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The line's own name, and what it asks for."""
    if "body" not in document:
        body = {SHORT.get(name, name): value for name, value in document.items()}
        return _name(body.pop("custom_id", None)), body
    if unknown := set(document) - BATCH_FIELDS:
        raise ValueError(f"{_names(unknown)}: not among {_names(BATCH_FIELDS)}")
    if document.get("url", URL) != URL or document.get("method", "POST") != "POST":
        said = f"{document.get('method')} {document.get('url')}"
        raise ValueError(f"{said}: POST {URL} alone is taken: a base model continues a text")
    if not isinstance(document["body"], dict):
        raise ValueError("body is no object: {…}")
    return _name(document.get("custom_id")), document["body"]


def _name(value: object) -> str | None:
    if value is not None and not isinstance(value, str | int):
        raise ValueError("the id is neither text nor a number")
    return None if value is None else str(value)


def _request(body: dict[str, Any], asked: Request) -> Request:
    for name, value in body.items():
        if name not in TAKEN and (name not in USUAL or value not in (USUAL[name], None)):
            raise ValueError(f"{name} = {json.dumps(value)} is not taken")
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise ValueError("there is no prompt" if prompt in (None, "") else "the prompt is no text")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ValueError("the prompt has half a character in it (a lone surrogate)")
    if body.get("model", asked.model.name) not in (asked.model.name, None):
        raise ValueError(f"the line asks for the model {body['model']}, and this batch is of {asked.model.name}")
    return replace(
        asked,
        prompt=prompt,
        max_new_tokens=_whole("max_tokens", body.get("max_tokens"), asked.max_new_tokens, 1),
        temperature=_temperature(body.get("temperature"), asked.temperature),
        seed=_whole("seed", body.get("seed"), asked.seed, 0),
    )


def _whole(name: str, value: object, usual: int, least: int) -> int:
    if value is None:
        return usual
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST_SEED:
        raise ValueError(f"{name} = {json.dumps(value)}: a whole number from {least} on")
    return value


def _temperature(value: object, usual: float) -> float:
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"temperature = {json.dumps(value)}: a number from 0 on")
    return float(value)


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names))
