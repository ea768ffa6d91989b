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
from dataclasses import asdict, dataclass
from typing import Any

from kit import paths
from kit.bench.experiment import Bench
from kit.bench.plan import Combination
from kit.engines import devices, llamacpp_engine, methods, threads, torch_engine
from kit.engines.devices import Device
from kit.errors import KitError, WrongUsage
from kit.models import gguf_files, registry
from kit.models.registry import Model
from kit.verify import golden, replay

LONG = "long"
FIRST = 32  # tokens that are only read: without anything before them, the first ones say little
TOKENS = 512  # positions that count, from there on

# In a process of its own: float32 and another format together would not fit into a small machine.
CHILD = "import sys; from kit.bench import quality; print(quality.read_as_json(*sys.argv[1:]))"
REFERENCE = Combination("manual", "cpu", "float32", None, 0)


@dataclass(frozen=True)
class Quality:
    """`perplexity` over `tokens` positions, and the share of them whose most probable token is float32's."""

    method: str
    device: str
    dtype: str | None
    quant: str | None
    tokens: int
    perplexity: float
    top1_agreement: float


def require_meaning(model: Model) -> None:
    """Raises WrongUsage for random weights."""
    if model.is_random:
        raise WrongUsage(
            f"QUALITY=1: {model.name} is {model.title}, which have no quality.", "make bench QUALITY=1 MODEL=starter"
        )


def measure(bench: Bench, on_progress: Callable[[str, float], None] = lambda what, share: None) -> list[dict[str, Any]]:
    """A Quality for float32 and for each combination of a bench that ran, into `bench.quality` one by one.

    Raises KitError where one fails.
    """
    model = bench.plan.model
    asked = [row.combination for row in bench.measured()]
    asked = [REFERENCE, *(one for one in asked if (one.method, one.device, one.dtype) != ("manual", "cpu", "float32"))]
    found = bench.quality = []
    best: list[int] = []
    for number, one in enumerate(asked):
        on_progress(f"quality: {one}", number / len(asked))
        logprobs, own = _in_a_child(model, one)
        best = best or own
        agreeing = sum(a == b for a, b in zip(best, own, strict=True)) / len(best)
        perplexity = math.exp(-statistics.fmean(logprobs))
        found.append(asdict(Quality(one.method, one.device, one.dtype, one.quant, len(best), perplexity, agreeing)))
    return found


def _in_a_child(model: Model, one: Combination) -> tuple[list[float], list[int]]:
    command = [sys.executable, "-c", CHILD, model.name, one.method, one.device, one.number_format]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        reason = last[0].partition("KitError: ")[2] or last[0]
        raise KitError(f"the quality of {one} could not be measured: {reason}", "make bench without QUALITY=1")
    logprobs, best = json.loads(done.stdout)
    return logprobs, best


def read_as_json(name: str, method: str, device: str, number_format: str) -> str:
    """The log-probability of each token of the text, and the most probable token in its place."""
    model = registry.find(name)
    text = golden.prompts()[LONG]
    if method == methods.LLAMACPP:
        return json.dumps(_through_llamacpp(model, device, number_format, text))
    return json.dumps(_through_transformers(model, method, devices.choose(device, number_format, ""), text))


def _through_transformers(model: Model, method: str, device: Device, text: str) -> tuple[list[float], list[int]]:
    threads.before_torch()
    import torch

    loaded = torch_engine.load_model(model, method, device)
    ids = loaded.tokenizer(text)["input_ids"][: FIRST + TOKENS]
    tokens = torch.tensor([ids], device=device.name)
    with torch.inference_mode():
        logits = loaded.model(tokens, use_cache=False).logits[0, FIRST - 1 : -1].float().cpu()
    logprobs, _ = replay.compare_logits(logits, torch.tensor(ids[FIRST:]))
    return logprobs, logits.argmax(1).tolist()


def _through_llamacpp(model: Model, device: str, quant: str, text: str) -> tuple[list[float], list[int]]:
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(model.folder / "tokenizer.json")).encode(text).ids[: FIRST + TOKENS]
    replaying = llamacpp_engine.LlamacppReplay(model, gguf_files.choose(model, quant), device, len(ids))
    try:
        found = list(replaying.positions(ids, FIRST))
    finally:
        replaying.close()
    return [position.logprob for position in found], [position.best for position in found]
