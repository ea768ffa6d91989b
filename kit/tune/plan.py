"""How a model is tuned where nobody says: defaults by the size of the text; and whether it fits into memory, before."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from kit.engines import memory
from kit.environment.machine import Machine
from kit.errors import Command, KitError, WrongUsage
from kit.formats import llama
from kit.models import examine
from kit.models.registry import Model
from kit.tune.head_loss import PIECE
from kit.tune.train import Recipe

RANK = 8


@dataclass(frozen=True)
class Defaults:
    """For texts of up to `tokens`."""

    tokens: float
    epochs: int
    lr: float
    context: int


# Measured (docs/tuning.md): what is usual elsewhere, 2e-4 and a few epochs, leaves no trace of a page of text; what a
# page needs makes a model forget on a book.
BY_SIZE = (Defaults(5_000, 6, 1e-3, 64), Defaults(50_000, 3, 3e-4, 128), Defaults(math.inf, 1, 2e-4, 256))


def defaults(tokens: int) -> Defaults:
    return next(each for each in BY_SIZE if tokens <= each.tokens)


def recipe(
    model: Model, tokens: int, epochs: int | None, lr: float | None, rank: int | None, context: int | None, seed: int
) -> Recipe:
    """What was asked for, and the defaults for a text of so many `tokens` elsewhere. Raises WrongUsage."""
    usual = defaults(tokens)
    found = Recipe(
        epochs=usual.epochs if epochs is None else epochs,
        lr=usual.lr if lr is None else lr,
        rank=RANK if rank is None else rank,
        context=min(usual.context, model.context) if context is None else context,
        seed=seed,
    )
    if not 0 < found.lr < 1:
        raise WrongUsage(f"LR={found.lr:g}: a rate is above 0 and below 1.", f"LR={usual.lr:g} is the usual one here")
    if found.context > model.context:
        what = f"CONTEXT={found.context}: the context of {model.name} holds {model.context} tokens."
        raise WrongUsage(what, f"CONTEXT={usual.context}")
    if tokens < found.context:
        raise WrongUsage(
            f"the text to learn from has {tokens} tokens, and one block holds {found.context}.",
            *(("more text, or ", f"CONTEXT={tokens // 8 * 8}") if tokens >= 16 else ("more text",)),
        )
    largest = min(llama.read_config(model.folder)["hidden_size"], 256)
    if found.rank > largest:
        raise WrongUsage(f"RANK={found.rank}: at most {largest} for {model.name}.", f"RANK={RANK}")
    return found


# --- Memory -----------------------------------------------------------------------------------------------------------

# Fitted to measured peaks, which they meet within a tenth (docs/measurements.md).
LIBRARIES = 350_000_000  # bytes: torch, transformers, peft, the tokenizer
# For each number that goes into or out of a linear layer, what is kept of it for the way back.
BYTES_PER_NUMBER = {"bfloat16": 6.4, "float16": 6.4, "float32": 9.8}
# With gradient checkpointing this share of it is in memory at once: a few layers, and what malloc keeps of others.
CHECKPOINTED = 0.45
LOGITS_COPIES = 3
# Of the memory that is free, so much is taken at most: the rest of the machine works on.
SHARE = 0.9


def adapter_bytes(model: Model, recipe: Recipe) -> int:
    """Bytes of the adapters, in float32."""
    return 4 * recipe.rank * _numbers(model)


def _numbers(model: Model) -> int:
    """How many numbers go into and out of the linear layers, for each token."""
    config = llama.read_config(model.foundation.folder)
    shapes = llama.shapes(config)
    return sum(sum(shape) for name, shape in shapes.items() if name.startswith("model.layers.") and len(shape) == 2)


def peak_memory(model: Model, recipe: Recipe, checkpointing: bool) -> int:
    """Bytes that a tuning takes at most, on any device.

    The base's weights as they are; the adapters in float32, their gradients and AdamW's two moments; what the layers
    keep for the way back, which grows with the context; and the logits of one piece.
    """
    numbers = _numbers(model)
    dtype = examine.examination(model).dtype
    kept = CHECKPOINTED * numbers if checkpointing else numbers
    logits = LOGITS_COPIES * 4 * min(PIECE, recipe.context) * examine.examination(model).rows
    activations = recipe.context * kept * BYTES_PER_NUMBER[dtype]
    return int(LIBRARIES + examine.weights_bytes(model) + 4 * adapter_bytes(model, recipe) + activations + logits)


def require_memory(model: Model, recipe: Recipe, here: Machine, on_note: Callable[[str], None]) -> bool:
    """Whether to switch gradient checkpointing on, which is said. Raises KitError where it does not fit with it."""
    free = memory.free_memory(here)
    if free is None:
        return False
    plain, less = (peak_memory(model, recipe, checkpointing) for checkpointing in (False, True))
    if plain <= free * SHARE:
        return False
    if less <= free * SHARE:
        on_note(
            f"{model.name} with CONTEXT={recipe.context} needs {plain / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: "
            f"with gradient checkpointing {less / 1e9:.1f} GB do, a quarter slower"
        )
        return True
    fitting = [one for one in (512, 256, 128, 64, 32) if one < recipe.context]
    fitting = [one for one in fitting if peak_memory(model, replace(recipe, context=one), True) <= free * SHARE]
    raise KitError(
        f"tuning {model.name} with CONTEXT={recipe.context} needs {less / 1e9:.1f} GB of memory at least, and "
        f"{free / 1e9:.1f} GB are free.",
        "close other programs",
        *((f", or CONTEXT={fitting[0]}",) if fitting else ()),
        *((", or ", Command("tune", MODEL="starter")) if model.name != "starter" else ()),
    )
