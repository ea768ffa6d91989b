"""A reference, replayed: the same tokens are fed to a model in one pass a prompt, and what it makes of each is
compared.

Teacher-forced: a difference at one position does not change what stands at the next, as it would in free generation.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kit.engines.engine import Engine, Position
from kit.engines.request import Request
from kit.verify.golden import LONG_TOKENS, Entry, Golden

NEW_TOKENS = 48
# How much of the long prompt is compared too: at its end, where a wrong position shows most.
LONG_COMPARED = 256


@dataclass(frozen=True)
class Flip:
    """A position where another token comes first than in the reference. `margin` is the reference's, in nats."""

    prompt: str
    position: int
    margin: float


@dataclass(frozen=True)
class Replay:
    """What a replay found. `differences` are of the log-probabilities, absolute, in nats, over all positions.

    `common` is, for each prompt, how many tokens of the greedy continuation are the same, and of how many.
    """

    mean: float
    largest: float
    where: str
    positions: int
    flips: tuple[Flip, ...]
    common: dict[str, tuple[int, int]]


# Of a text's token ids and a position: what a model makes of each token from there on.
Measure = Callable[[Sequence[int], int], Sequence[Position]]


def compare(measured: Measure, golden: Golden, on_entry: Callable[[str], None] = lambda name: None) -> Replay:
    """Compares what `measured` gives with the reference."""
    differences: list[tuple[float, str]] = []
    flips: list[Flip] = []
    common: dict[str, tuple[int, int]] = {}
    for entry in golden.entries:
        on_entry(entry.name)
        positions = measured(entry.ids, entry.first)
        flipped = set()
        for place, (now, then) in enumerate(zip(positions, entry.logprobs, strict=True)):
            position = entry.first + place
            # NaN compares as equal to everything, and is the worst of all.
            difference = abs(now.logprob - then) if now.logprob == now.logprob else float("inf")
            differences.append((difference, f"{entry.name}, position {position}"))
            if (now.margin > 0) != (entry.margins[place] > 0):
                flips.append(Flip(entry.name, position, abs(entry.margins[place])))
                flipped.add(position)
        continued = range(entry.prompt_tokens, len(entry.ids))
        same = next((place for place, position in enumerate(continued) if position in flipped), len(continued))
        common[entry.name] = same, len(continued)
    largest, where = max(differences)
    mean = statistics.fmean(difference for difference, _ in differences)
    return Replay(mean, largest, where, len(differences), tuple(flips), common)


def record(engine: Engine, prompts: dict[str, str]) -> Iterator[Entry]:
    """The entries of a reference, from a loaded engine: in float32, on the CPU."""
    for name, text in prompts.items():
        prompt_ids = encode(engine, name, text)
        request = Request(engine.model, max_new_tokens=NEW_TOKENS, ignore_eos=True, prompt_ids=prompt_ids)
        came = engine.generate(request, lambda text: None)
        yield _entry(engine, name, prompt_ids, came.token_ids)


def read_out(engine: Engine, prompts: dict[str, str]) -> Iterator[Entry]:
    """What a loaded engine makes of the prompts themselves, in the form of a reference: nothing is continued."""
    for name, text in prompts.items():
        yield _entry(engine, name, encode(engine, name, text), ())


def _entry(engine: Engine, name: str, prompt_ids: tuple[int, ...], continued: Sequence[int]) -> Entry:
    ids = (*prompt_ids, *continued)
    first = max(1, len(prompt_ids) - LONG_COMPARED)
    found = engine.logprobs(ids, first)
    logprobs, margins = (tuple(getattr(position, each) for position in found) for each in ("logprob", "margin"))
    return Entry(name, ids, len(prompt_ids), first, logprobs, margins, engine.decode(continued) if continued else "")


def encode(engine: Engine, name: str, text: str) -> tuple[int, ...]:
    """The prompt's tokens, as many as the model reads and continues; of the long prompt as many as a reference has."""
    room = engine.model.context - NEW_TOKENS
    return tuple(engine.encode(text)[: min(room, LONG_TOKENS) if name == "long" else room])
