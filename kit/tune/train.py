"""The training: LoRA adapters on a loaded model, one block an update, and a checkpoint that goes on where it ended.

An own loop of the size of a page: the one of transformers' Trainer would bring its own ideas of data, checkpoints and
memory, and leaks on MPS (huggingface/transformers#33717).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import Command, KitError
from kit.files import beside, trouble
from kit.formats import llama
from kit.tune.data import Block
from kit.tune.head_loss import head_loss

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

WARM_UP = 0.05  # of the updates; from there the rate falls along half a cosine, to nothing
# Every linear layer but the head.
LINEAR = sorted(name.split(".")[-1] for name in llama.LAYER_NAMES.values() if name.endswith("_proj"))
CLIP = 1.0  # the gradient's norm at most
CHECKPOINT_EVERY = 30.0  # seconds
# Into how many parts measurements of the held-out text cut a training, at least and at most; between them so often that
# they take a tenth of the time, a token of it 0.4 of what one takes that is learnt from (docs/measurements.md).
CURVE_POINTS, CURVE_SHARE, HELD_OUT_COST = (3, 10), 0.1, 0.4


@dataclass(frozen=True)
class Recipe:
    """How a model is tuned: what was asked for, or comes from the size of the text (kit/tune/plan.py).

    `lr` is AdamW's highest rate, `rank` that of each adapter, whose product counts `alpha` / `rank` times; `context` is
    a block's length in tokens, and each update learns from one block.
    """

    epochs: int
    lr: float
    rank: int
    context: int
    seed: int

    @property
    def alpha(self) -> int:
        """Twice the rank, as most do: so a rank can be changed without the rate."""
        return 2 * self.rank

    def rate(self, update: int, updates: int) -> float:
        """The rate of an update, counted from 0."""
        warm_up = max(1, round(updates * WARM_UP))
        if update < warm_up:
            return self.lr * (update + 1) / warm_up
        return self.lr * 0.5 * (1 + math.cos(math.pi * (update - warm_up) / max(1, updates - warm_up)))


@dataclass
class Curve:
    """Losses in nats a token: of each update's block, and of the held-out text after `at` updates."""

    training: list[float] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)


def with_adapters(model: PreTrainedModel, recipe: Recipe, base: str | None, revision: str) -> PeftModel:
    """The model with an adapter beside every linear layer but the head, in float32 (the model's own weights stay as
    they are), which change nothing yet. `base` and `revision` are what the adapter will say it belongs to."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=0.0, target_modules=LINEAR, task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_peft_model(model, config)
    own = found.peft_config["default"]
    # Not the folder of this machine, which peft takes.
    own.base_model_name_or_path, own.revision = base, revision
    return found


def loss_sum(model: PreTrainedModel, block: Block) -> tuple[torch.Tensor, int]:
    """The summed loss of a block's learnt tokens, in nats, and how many they are."""
    import torch

    ids, learnt = block
    device = model.device
    tokens = torch.tensor([ids], device=device)
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[0, :-1]
    wanted = torch.tensor(learnt[1:], device=device)
    count = sum(learnt[1:])
    if count < len(learnt) - 1:
        hidden, targets = hidden[wanted], tokens[0, 1:][wanted]
    else:
        targets = tokens[0, 1:]
    total: torch.Tensor = head_loss().apply(hidden, model.lm_head.weight, targets)  # type: ignore[no-untyped-call]
    return total, count


def mean_loss(model: PreTrainedModel, blocks: Sequence[Block]) -> float:
    """Nats a learnt token over the blocks, with the adapters as they are."""
    import torch

    training = model.training
    model.eval()
    with torch.inference_mode():
        parts = [(total.item(), count) for total, count in (loss_sum(model, block) for block in blocks)]
    model.train(training)
    return sum(total for total, _ in parts) / max(1, sum(count for _, count in parts))


def updates_between(updates: int, context: int, held_out: Sequence[Block]) -> int:
    """Of `updates` of `context` tokens, those from one measurement of the held-out text to the next."""
    cost = HELD_OUT_COST * sum(len(ids) for ids, _ in held_out) or 1
    least, most = CURVE_POINTS
    return max(1, round(updates / min(max(CURVE_SHARE * updates * context / cost, least), most)))


class Training:
    """Updates of the adapters of `model`, and the state that a checkpoint keeps: adapters, optimizer, random numbers,
    and how many updates they have had, which is the place in the data."""

    def __init__(self, model: PeftModel, recipe: Recipe, updates: int) -> None:
        import torch

        self.model, self.recipe, self.updates = model, recipe, updates
        self.loaded: PreTrainedModel = model.get_base_model()
        self.parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=recipe.lr, weight_decay=0.0, fused=True)
        self.update, self.seconds, self.tokens = 0, 0.0, 0
        self.curve = Curve()

    @property
    def speed(self) -> float:
        """Tokens a second so far, the held-out text's measurements and checkpoints among them."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def run(
        self,
        blocks: Iterable[Block],
        held_out: Sequence[Block],
        checkpoint: Checkpoint,
        on_update: Callable[[Training], None],
        is_to_stop: Callable[[], bool],
    ) -> None:
        """To the last update, or to the end of the one in which it `is_to_stop`. The checkpoint is written twice a
        minute and at the end. Raises KitError where the loss is no number, or the disk is full."""
        import torch

        every = updates_between(self.updates, self.recipe.context, held_out)
        self.loaded.train()
        saved = started = time.monotonic()
        before = self.seconds
        for block in islice(blocks, self.update, self.updates):
            total, count = loss_sum(self.loaded, block)
            loss = total / max(1, count)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
            value = loss.item()
            if not math.isfinite(value) or not math.isfinite(norm.item()):
                raise KitError(
                    f"the training came apart: the loss of update {self.update + 1} is no number.",
                    f"a lower rate: LR={self.recipe.lr / 10:g}",
                )
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.rate(self.update, self.updates)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.update += 1
            self.tokens += len(block[0])
            self.curve.training.append(value)
            if self.update % every == 0 and self.update < self.updates:
                self.curve.at.append(self.update)
                self.curve.held_out.append(mean_loss(self.loaded, held_out))
            now = time.monotonic()
            self.seconds = before + now - started
            on_update(self)
            stops = is_to_stop()
            if stops or self.update == self.updates or now - saved >= CHECKPOINT_EVERY:
                checkpoint.write(self)
                saved = now
            if stops:
                return

    def state(self) -> dict[str, Any]:
        import torch

        random = {"cpu": torch.get_rng_state()}
        if self.loaded.device.type == "mps":
            random["mps"] = torch.mps.get_rng_state()
        return {
            "adapters": {name: one.detach().cpu() for name, one in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "random": random,
            "update": self.update,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "curve": vars(self.curve),
        }

    def restore(self, state: dict[str, Any]) -> None:
        import torch

        with torch.no_grad():
            for name, one in self.parameters.items():
                one.copy_(state["adapters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"]["cpu"])
        if self.loaded.device.type == "mps":
            torch.mps.set_rng_state(state["random"]["mps"])
        self.update, self.seconds, self.tokens = state["update"], state["seconds"], state["tokens"]
        self.curve = Curve(**state["curve"])


@dataclass(frozen=True)
class Checkpoint:
    """The file that a training goes on from; `request` is what it is a training of, as JSON has it, and `what` what was
    measured before it began."""

    path: Path
    request: dict[str, Any]
    measured: dict[str, Any]

    def write(self, training: Training) -> None:
        """Whole or not at all. Raises KitError where the disk is full; the one before stays."""
        import torch

        with trouble("the checkpoint", (Command("tune"), "  (as before: it goes on from the checkpoint before)")):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with beside(self.path) as partial, partial.open("wb") as file:
                try:
                    torch.save({"request": self.request, "measured": self.measured, "state": training.state()}, file)
                except RuntimeError as error:
                    # torch's writer says of a disk that is full that a position in its stream is unexpected.
                    if isinstance(error.__context__, OSError):
                        raise error.__context__ from error
                    raise


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """What is kept there; None where there is none, or none that can be read."""
    import torch

    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception:  # what torch raises of a damaged file is of a dozen kinds
        return None
    return found if {"request", "measured", "state"} <= set(found) else None
