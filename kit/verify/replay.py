"""A reference, replayed: the same tokens are fed to a model in one pass a prompt, and what it makes of each is
compared.

Teacher-forced: a difference at one position does not change what stands at the next, as it would in free generation.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kit.verify.golden import LONG_TOKENS, Entry, Golden

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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


# Of a text's token ids and a position: the log-probability of each token from there on, and its margin over the best
# other one.
Measure = Callable[[tuple[int, ...], int], tuple[list[float], list[float]]]


def replay(model: PreTrainedModel, golden: Golden, on_entry: Callable[[str], None] = lambda name: None) -> Replay:
    """Compares `model`, on its own device and in its own number format, with the reference."""
    return compare(lambda ids, first: measure(model, ids, first), golden, on_entry)


def compare(measured: Measure, golden: Golden, on_entry: Callable[[str], None] = lambda name: None) -> Replay:
    """Compares what `measured` gives with the reference."""
    differences: list[tuple[float, str]] = []
    flips: list[Flip] = []
    common: dict[str, tuple[int, int]] = {}
    for entry in golden.entries:
        on_entry(entry.name)
        logprobs, margins = measured(entry.ids, entry.first)
        flipped = set()
        for place, (now, then) in enumerate(zip(logprobs, entry.logprobs, strict=True)):
            position = entry.first + place
            # NaN compares as equal to everything, and is the worst of all.
            difference = abs(now - then) if now == now else float("inf")
            differences.append((difference, f"{entry.name}, position {position}"))
            if (margins[place] > 0) != (entry.margins[place] > 0):
                flips.append(Flip(entry.name, position, abs(entry.margins[place])))
                flipped.add(position)
        continued = range(entry.prompt_tokens, len(entry.ids))
        same = next((place for place, position in enumerate(continued) if position in flipped), len(continued))
        common[entry.name] = same, len(continued)
    largest, where = max(differences)
    mean = statistics.fmean(difference for difference, _ in differences)
    return Replay(mean, largest, where, len(differences), tuple(flips), common)


def record(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: dict[str, str]) -> Iterable[Entry]:
    """The entries of a reference, from a model in float32 on the CPU."""
    import torch

    for name, text in prompts.items():
        prompt_ids = encode(tokenizer, name, text)
        with torch.inference_mode():
            inputs = torch.tensor([prompt_ids])
            generated = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )
        ids = tuple(generated[0].tolist())
        first = max(1, len(prompt_ids) - LONG_COMPARED)
        logprobs, margins = measure(model, ids, first)
        text = tokenizer.decode(ids[len(prompt_ids) :])
        yield Entry(name, ids, len(prompt_ids), first, tuple(logprobs), tuple(margins), text)


def encode(tokenizer: PreTrainedTokenizerBase, name: str, text: str) -> list[int]:
    """The prompt's tokens; of the long prompt as many as the reference has."""
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids[:LONG_TOKENS] if name == "long" else ids


def measure(model: PreTrainedModel, ids: tuple[int, ...], first: int) -> tuple[list[float], list[float]]:
    """The log-probability of each token from position `first` on, and its margin over the best other one."""
    import torch

    tokens = torch.tensor([ids], device=model.device)
    # The token at position p is foretold at p - 1; the last one foretells what is not compared.
    wanted = len(ids) - first
    with torch.inference_mode():
        logits = model(tokens, use_cache=False, logits_to_keep=wanted + 1).logits[0, :-1].float().cpu()
    return compare_logits(logits, torch.tensor(ids[first:]))


def compare_logits(logits: torch.Tensor, taken: torch.Tensor) -> tuple[list[float], list[float]]:
    """`logits` (positions, vocabulary) and the tokens that were taken (positions)."""
    own = logits.gather(1, taken[:, None])[:, 0]
    logprobs = own - logits.logsumexp(1)
    others = logits.scatter(1, taken[:, None], float("-inf")).max(1).values
    return logprobs.tolist(), (own - others).tolist()
