"""What a number format costs in quality: perplexity, and how often the most probable token is float32's.

The text is fixed and in the public domain: the tokens of the reference's long prompt, the Constitution of the United
States. Teacher-forced, so that one token's difference does not change what stands at the next.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from kit import paths
from kit.bench.experiment import Bench
from kit.bench.plan import Combination
from kit.engines import methods
from kit.errors import Command, KitError, WrongUsage
from kit.models import registry
from kit.models.registry import Model
from kit.verify import golden

LONG = "long"
FIRST = 32  # tokens that are only read: without anything before them, the first ones say little
TOKENS = 512  # positions that count, from there on

# In a process of its own: float32 and another format together would not fit into a small machine.
CHILD = "import sys; from kit.bench import quality; print(quality.read_as_json(*sys.argv[1:]))"
REFERENCE = Combination(methods.REFERENCE.method, "cpu", "float32", None, 0)


def require_meaning(model: Model) -> None:
    """Raises WrongUsage for random weights."""
    if model.is_random:
        why = f"QUALITY=1: {model.name} is {model.title}, which have no quality."
        raise WrongUsage(why, Command("bench", QUALITY="1", MODEL="starter"))


def measure(bench: Bench, on_progress: Callable[[str, float], None] = lambda what, share: None) -> list[dict[str, Any]]:
    """For float32 and for each combination of a bench that ran, into `bench.quality` one by one: `perplexity` over
    `tokens` positions, and `top1_agreement`, the share of them whose most probable token is float32's.

    Raises KitError where one fails.
    """
    model = bench.plan.model
    asked = [row.combination for row in bench.measured()]
    asked = [REFERENCE, *(one for one in asked if str(one) != str(REFERENCE))]
    found = bench.quality = []
    best: list[int] = []
    for number, one in enumerate(asked):
        on_progress(f"quality: {one}", number / len(asked))
        logprobs, own = _in_a_child(model, one)
        best = best or own
        agreeing = sum(a == b for a, b in zip(best, own, strict=True)) / len(best)
        ran = {"method": one.method, "device": one.device, "dtype": one.dtype, "quant": one.quant, "tokens": len(best)}
        found.append({**ran, "perplexity": math.exp(-statistics.fmean(logprobs)), "top1_agreement": agreeing})
    return found


def _in_a_child(model: Model, one: Combination) -> tuple[list[float], list[int]]:
    command = [sys.executable, "-c", CHILD, model.name, one.method, one.device, one.number_format]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        reason = last[0].partition("KitError: ")[2] or last[0]
        raise KitError(f"the quality of {one} could not be measured: {reason}", Command("bench"), " without QUALITY=1")
    logprobs, best = json.loads(done.stdout)
    return logprobs, best


def read_as_json(name: str, method: str, device: str, number_format: str) -> str:
    """The log-probability of each token of the text, and the most probable token in its place."""
    with methods.of(method)(registry.find(name), device, number_format) as engine:
        ids = engine.encode(golden.prompts()[LONG])[: FIRST + TOKENS]
        engine.load(len(ids))
        found = engine.logprobs(ids, FIRST)
    return json.dumps([[position.logprob for position in found], [position.best for position in found]])
