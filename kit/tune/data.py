"""One's own text, as a model is tuned on it: samples, a part of them held out, the rest packed into blocks.

A sample is a paragraph of a text, or a record of a JSONL file. The samples are shuffled anew for each epoch and then
packed into blocks of one length, with no padding; what does not fill the last block begins the next epoch's first. In
the order of the file a model learns to copy from the lines before, and nothing else (docs/tuning.md).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import Command, KitError, WrongUsage
from kit.files import cause_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HELD_OUT = 0.1  # of the samples
FEWEST = 2  # samples: one to learn from, one held out
# Texts and what they look like from outside; a folder is searched for the first two.
SUFFIXES = (".txt", ".md")
UTF8 = "save it as UTF-8, then the same command"
RECORD = '{"text": "…"}, or {"prompt": "…", "completion": "…"}'


@dataclass(frozen=True)
class Sample:
    """`prompt` is read and not learnt, `text` is learnt. A record `ends`: the model learns to stop behind it."""

    text: str
    prompt: str = ""
    ends: bool = False

    @property
    def key(self) -> bytes:
        """The same for samples that differ in blanks, line ends and the case of letters alone."""
        words = "\0".join(" ".join(part.split()).casefold() for part in (self.prompt, self.text))
        return hashlib.sha256(words.encode("utf-8")).digest()


@dataclass(frozen=True)
class Text:
    """What was read: its samples in their order, and the sha256 of its bytes."""

    name: str
    kind: str
    sha256: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Tokens:
    """A sample's token ids; `learnt` says of each whether the model is to learn it."""

    ids: tuple[int, ...]
    learnt: tuple[bool, ...]


Block = tuple[list[int], list[bool]]


# --- Reading ----------------------------------------------------------------------------------------------------------


def read(path: Path) -> Text:
    """A text file, a folder of .txt and .md files, or a JSONL file. Raises KitError that says what cannot be read, and
    where."""
    if not path.exists():
        raise WrongUsage(f"DATA={path} is not there.", Command("tune", DATA="notes.txt"))
    try:
        files = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES) if path.is_dir() else [path]
        contents = [(file, file.read_bytes()) for file in files if file.is_file()]
    except OSError as error:
        cause, mend = cause_of(error)
        raise KitError(f"DATA={path} cannot be read: {cause}.", f"{mend}, then the same command") from error
    if not contents:
        raise WrongUsage(f"DATA={path} is a folder without {' and '.join(SUFFIXES)} files.", "put a text into it")
    digest, samples = hashlib.sha256(), []
    for file, content in contents:
        digest.update(hashlib.sha256(content).digest())
        text = _decoded(file, content)
        samples += _records(file, text) if file.suffix in (".jsonl", ".ndjson") else paragraphs(text)
    kind = "folder" if path.is_dir() else "records" if path.suffix in (".jsonl", ".ndjson") else "text"
    sha256 = digest.hexdigest() if path.is_dir() else hashlib.sha256(contents[0][1]).hexdigest()
    if not samples:
        raise WrongUsage(f"DATA={path} is empty.", "put a text into it: paragraphs, with a blank line between two")
    return Text(path.name, kind, sha256, tuple(samples))


def _decoded(path: Path, content: bytes) -> str:
    if b"\0" in content:
        raise WrongUsage(f"{path} is no text: byte {content.index(0)} is zero.", UTF8)
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise WrongUsage(f"{path} is not UTF-8 (byte {error.start}).", UTF8) from error


def paragraphs(text: str) -> list[Sample]:
    """What blank lines separate; of a text that has none, its lines."""
    parts = [part.strip() for part in re.split(r"\n[^\S\n]*\n", text)]
    parts = [part for part in parts if part]
    if len(parts) == 1:
        parts = [line.strip() for line in parts[0].split("\n") if line.strip()]
    return [Sample(part) for part in parts]


def _records(path: Path, text: str) -> list[Sample]:
    samples = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise WrongUsage(f"{path}, line {number}: no JSON ({error}).", f"one record a line: {RECORD}") from error
        samples.append(_record(path, number, record))
    return samples


def _record(path: Path, number: int, record: Any) -> Sample:
    names = ("text",) if isinstance(record, dict) and "text" in record else ("prompt", "completion")
    values = [record.get(name) if isinstance(record, dict) else None for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str) or (name != "prompt" and not value.strip()):
            raise WrongUsage(f"{path}, line {number}: no text under {name!r}.", f"one record a line: {RECORD}")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise WrongUsage(f"{path}, line {number}: {name!r} has half a character in it.", "write the whole one")
    return Sample(str(values[-1]), str(values[0]) if len(values) == 2 else "", ends=True)


# --- Holding out ------------------------------------------------------------------------------------------------------


def hold_out(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The samples to learn from and those held out, each in their order.

    By content and not by place: a tenth with the lowest sha256, so that the same paragraph falls on the same side
    wherever it stands, and however often. Raises WrongUsage where there are too few.
    """
    keys = sorted({sample.key for sample in samples})
    if len(keys) < FEWEST:
        raise WrongUsage(
            f"the text has {len(keys)} paragraph: at least {FEWEST} are needed, one to learn from and one held out.",
            "a blank line between two paragraphs",
        )
    held = set(keys[: max(1, round(len(keys) * HELD_OUT))])
    return [one for one in samples if one.key not in held], [one for one in samples if one.key in held]


# --- Tokens, and blocks of them ---------------------------------------------------------------------------------------


def encode(samples: Sequence[Sample], backend: Tokenizer, end: int | None) -> list[Tokens]:
    """Each sample's tokens. A paragraph is followed by a blank line, a record by the model's end token."""
    found = []
    for sample in samples:
        own = list(backend.encode(sample.text if sample.ends else f"{sample.text}\n\n", add_special_tokens=False).ids)
        # The prompt alone, as it will be when it is asked.
        before = list(backend.encode(sample.prompt, add_special_tokens=False).ids) if sample.prompt else []
        if sample.ends and end is not None:
            own.append(end)
        found.append(Tokens((*before, *own), (*(False for _ in before), *(True for _ in own))))
    return found


def blocks(samples: Sequence[Tokens], begin: Sequence[int], context: int, epochs: int, seed: int) -> Iterator[Block]:
    """Blocks of `context` tokens, each begun as a prompt is (`begin`), in an order that `seed` alone decides.

    A block in which nothing is learnt is left out, as is what is left at the end and fills none.
    """
    room = context - len(begin)
    ids: list[int] = []
    learnt: list[bool] = []
    for epoch in range(epochs):
        order = list(range(len(samples)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for place in order:
            ids += samples[place].ids
            learnt += samples[place].learnt
            start = 0
            while len(ids) - start >= room:
                if any(learnt[start : start + room]):
                    yield (
                        [*begin, *ids[start : start + room]],
                        [*(False for _ in begin), *learnt[start : start + room]],
                    )
                start += room
            del ids[:start], learnt[:start]


def in_order(samples: Sequence[Tokens], begin: Sequence[int], context: int, most: int) -> list[Block]:
    """The samples as they stand, in at most `most` blocks to measure by; the last one may be short."""
    ids = [one for sample in samples for one in sample.ids]
    learnt = [one for sample in samples for one in sample.learnt]
    room = context - len(begin)
    found = []
    for start in range(0, len(ids), room):
        part = learnt[start : start + room]
        if any(part[0 if begin else 1 :]):
            found.append(([*begin, *ids[start : start + room]], [*(False for _ in begin), *part]))
    return found[:most]
