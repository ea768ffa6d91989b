"""One tuning, from a text to models/<NAME>/: planned, measured, trained, measured again, written down."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kit import paths
from kit.engines import imports, memory, methods, threads
from kit.engines.torch_engine import TorchEngine
from kit.environment import facts, machine
from kit.errors import Command, Hint, WrongUsage
from kit.files import Progress, require_room, silent, staged, trouble
from kit.models import folder as model_folder
from kit.models import licence, registry
from kit.models.registry import Model
from kit.tune import artefact, data, evaluate, plan, train
from kit.tune.data import Block
from kit.tune.train import Checkpoint, Recipe, Training

ADAPTER_COPIES = 6  # in bytes on the disk: the adapter twice, and a checkpoint with its moments, and the one before it


@dataclass(frozen=True)
class Asked:
    """What was asked for; None for what the size of the text decides. No `data` is the text that comes with the
    kit; `typed_data` is what was typed for it, where that is another path."""

    base: Model
    name: str
    data: Path | None
    device: str = "auto"
    epochs: int | None = None
    lr: float | None = None
    rank: int | None = None
    context: int | None = None
    seed: int = 0
    typed_data: str = ""

    def again(self) -> Hint:
        """The same command once more."""
        given: dict[str, object] = {"MODEL": self.base.name} if self.base.name != "starter" else {}
        given |= {"DATA": self.typed_data or self.data} if self.data else {}
        given |= {"NAME": self.name} if self.name != usual_name(self.base) else {}
        given |= {"DEVICE": self.device} if self.device != "auto" else {}
        given |= {"SEED": self.seed} if self.seed else {}
        names = ("epochs", "lr", "rank", "context")
        given |= {name.upper(): getattr(self, name) for name in names if getattr(self, name) is not None}
        return (Command("tune", **given),)


@dataclass
class Prepared:
    """All that is known before the weights are read."""

    asked: Asked
    engine: TorchEngine
    text: data.Text
    learnt: list[data.Tokens]
    held_out: list[Block]
    prompts: list[str]
    begin: list[int]
    recipe: Recipe
    updates: int
    checkpointing: bool
    request: dict[str, Any]

    def blocks(self) -> Iterator[Block]:
        recipe = self.recipe
        return data.blocks(self.learnt, self.begin, recipe.context, recipe.epochs, recipe.seed)


def usual_name(base: Model) -> str:
    return f"{base.name}-tuned"


def workshop(name: str) -> Path:
    """Where the checkpoint of a tuning lies while it is under way."""
    return paths.MODELS / f".{name}.tuning"


def check_name(name: str) -> None:
    """Raises WrongUsage for a name that is none, or is a model's."""
    if not registry.NAME.fullmatch(name):
        raise WrongUsage(
            f"NAME={name}: a name has letters, digits, dots, _ and -, at most 64.", Command("tune", NAME="mine")
        )
    if name in registry.read():
        raise WrongUsage(f"NAME={name} is a model of env/models.toml.", Command("tune", NAME=f"{name}-tuned"))


def prepare(asked: Asked, on_note: Callable[[str], None]) -> Prepared:
    """Reads the text and decides, before anything is loaded or written. Raises WrongUsage and KitError."""
    check_name(asked.name)
    if asked.base.base:
        raise WrongUsage(
            f"{asked.base.name} is tuned already; a tuning begins with a model of its own.",
            Command("tune", MODEL=asked.base.base.name),
        )
    text = data.read(asked.data or evaluate.TEXT)
    learn, held = data.hold_out(text.samples)
    model_folder.check(asked.base)
    engine = methods.REFERENCE(asked.base, asked.device, "auto")
    assert isinstance(engine, TorchEngine)
    begin, end = engine.encode(""), next(iter(engine.examined.ends), None)
    learnt = data.encode(learn, engine.backend, end)
    tokens = sum(sum(each.learnt) for each in learnt)
    recipe = plan.recipe(
        asked.base, sum(len(each.ids) for each in learnt), asked.epochs, asked.lr, asked.rank, asked.context, asked.seed
    )
    held_out = data.in_order(data.encode(held, engine.backend, end), begin, recipe.context, evaluate.MOST_BLOCKS)
    updates = sum(1 for _ in data.blocks(learnt, begin, recipe.context, recipe.epochs, recipe.seed))
    if not updates or not held_out:
        raise WrongUsage("the text has nothing to learn in it.", "more text")
    checkpointing = plan.require_memory(asked.base, recipe, machine.this(), on_note)
    prompts = [each["prompt"] for each in evaluate.questions()[: evaluate.SHOWN]]
    said = {
        "name": text.name,
        "kind": text.kind,
        "sha256": text.sha256,
        "samples": len(learn),
        "tokens": tokens,
        "held_out_samples": len(held),
        "held_out_tokens": sum(len(ids) for ids, _ in held_out),
    }
    request = {
        "base": asked.base.identity(),
        "data": said,
        "settings": {
            **asdict(recipe),
            "alpha": recipe.alpha,
            "device": engine.device.name,
            "dtype": engine.device.number_format,
        },
    }
    if asked.data:
        prompts = evaluate.beginnings(held)
    if asked.base.is_random:
        on_note(f"{asked.base.name} has random weights: a tuning shows speed and memory, and its text means nothing")
    if (duty := licence.duty(asked.base)) and not licence.may_be_called(asked.base, asked.name):
        on_note(
            f"whoever hands a model on that was made of {asked.base.name} calls it Llama…, and shows «{duty.shown}»: "
            f"{asked.name} is for yourself (a name for others: NAME=llama-{asked.name})"
        )
    return Prepared(asked, engine, text, learnt, held_out, prompts, begin, recipe, updates, checkpointing, request)


def tune(
    ready: Prepared, on_note: Callable[[str], None], on_progress: Progress = silent
) -> tuple[dict[str, Any], bool]:
    """What tune.json says in the end, and whether it was here already. Goes on from a checkpoint of the same tuning.

    Stops at the end of the update in which Ctrl-C was pressed, with an adapter that can be used. Raises KitError.
    """
    asked = ready.asked
    target = paths.MODELS / asked.name
    adapter = plan.adapter_bytes(asked.base, ready.recipe)
    wait = partial(on_note, f"waiting for another process that tunes {asked.name}")
    with staged(f"models/{asked.name}", target, asked.again(), on_wait=wait) as place:
        assert place
        if (done := _already(ready)) is not None:
            return done, True
        require_room(f"models/{asked.name}", paths.MODELS, adapter * ADAPTER_COPIES + 10_000_000, asked.again())
        said, model = _train(ready, on_note, on_progress)
        place.mkdir()
        said = artefact.write(place, model, asked.base, asked.name, said)
        old = target.with_name(f".{asked.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        place.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        if said["complete"]:
            shutil.rmtree(workshop(asked.name), ignore_errors=True)
        model_folder.write_stamp(registry.find(asked.name))
    return said, False


def _already(ready: Prepared) -> dict[str, Any] | None:
    """What tune.json says of a tuning like this one that is done. Raises KitError where the name is taken."""
    asked = ready.asked
    target = paths.MODELS / asked.name
    other: Hint = (Command("tune", NAME=f"{asked.name}-2"), ", or ", Command("remove", NAME=asked.name))
    if target.exists():
        if not (target / registry.TUNE_JSON).is_file():
            raise WrongUsage(f"NAME={asked.name}: models/{asked.name}/ is there, and is no tuning.", *other)
        said = registry.read_tune(asked.name)
        if differs := _differences(ready.request, said):
            raise WrongUsage(f"NAME={asked.name} is taken, by a tuning {_state(said)}with {differs}.", *other)
        if said.get("complete"):
            model_folder.check(registry.find(asked.name))
            return said
    kept = train.read_checkpoint(workshop(asked.name) / "checkpoint.pt")
    if kept and (differs := _differences(ready.request, kept["request"])):
        raise WrongUsage(f"NAME={asked.name} is taken, by a tuning {_state({})}with {differs}.", *other)
    return None


def _state(said: dict[str, Any]) -> str:
    return "" if said.get("complete") else "under way "


def _differences(request: dict[str, Any], said: dict[str, Any]) -> str:
    """In what another tuning differs, in words; "" for none."""
    found = []
    if said.get("base", {}).get("files") != request["base"]["files"]:
        found.append(f"another base ({said.get('base', {}).get('name')})")
    if said.get("data", {}).get("sha256") != request["data"]["sha256"]:
        found.append(f"another text ({said.get('data', {}).get('name')})")
    theirs = said.get("settings", {})
    found += [
        f"{key.upper()}={theirs.get(key)}" for key, value in request["settings"].items() if theirs.get(key) != value
    ]
    return ", ".join(found)


def _train(ready: Prepared, on_note: Callable[[str], None], on_progress: Progress) -> tuple[dict[str, Any], Any]:
    asked, engine, recipe = ready.asked, ready.engine, ready.recipe
    started = time.monotonic()
    path = workshop(asked.name) / "checkpoint.pt"
    kept = train.read_checkpoint(path)
    engine.import_libraries()
    engine.load(asked.base.context)
    other = evaluate.unrelated(engine, recipe.context)
    measure = partial(evaluate.measure, engine, asked.base, ready.held_out, other, ready.prompts, asked.data is None)
    if kept:
        measured = kept["measured"]
    else:
        on_progress("measuring the base", 0)
        before = measure()
        began = time.monotonic()
        train.mean_loss(engine.loaded, other)
        took = time.monotonic() - began
        read = sum(len(ids) for ids, _ in other)
        measured = {"before": before, "checkpointing": ready.checkpointing}
        # Forward and back is three times forward: the frozen weights have no gradient, and the adapters are small.
        guess = ready.updates * recipe.context * took / read * (4 if ready.checkpointing else 3)
        on_note(f"{ready.updates} updates of {recipe.context} tokens: about {_duration(guess)}")
    base = asked.base
    model = train.with_adapters(engine.loaded, recipe, base.repo_id, base.revision)
    if measured["checkpointing"]:
        engine.loaded.gradient_checkpointing_enable({"use_reentrant": False})
    training = Training(model, recipe, ready.updates)
    if kept:
        training.restore(kept["state"])
        started -= training.seconds
        on_note(f"going on after {training.update} of {ready.updates} updates")
    checkpoint = Checkpoint(path, ready.request, measured)

    def report(now: Training) -> None:
        recent = now.curve.training[-10:]
        what = f"update {now.update} of {now.updates}, loss {sum(recent) / len(recent):.2f}, {now.speed:.0f} tokens/s"
        on_progress(what, now.update, now.updates)

    with trouble(f"the checkpoint of {asked.name}", asked.again()), _softly(on_note) as is_to_stop:
        training.run(ready.blocks(), ready.held_out, checkpoint, report, is_to_stop)
    complete = training.update == ready.updates
    on_progress("measuring what came of it", 0)
    if measured["checkpointing"]:
        engine.loaded.gradient_checkpointing_disable()
    said = {
        "format": 1,
        "name": asked.name,
        **ready.request,
        "checkpointing": measured["checkpointing"],
        "complete": complete,
        "updates": training.update,
        "updates_planned": ready.updates,
        "prompts": ready.prompts,
        "before": measured["before"],
        "after": measure(),
        "curve": {
            "training": [round(one, 4) for one in training.curve.training],
            "at": training.curve.at,
            "held_out": [round(one, 4) for one in training.curve.held_out],
        },
        "training_s": round(training.seconds, 1),
        "tokens_per_s": round(training.speed, 1),
        "total_s": round(time.monotonic() - started, 1),
        "peak_rss_bytes": memory.peak_rss_bytes(),
        "versions": imports.versions((*imports.PACKAGES, "peft")),
        "facts": {**facts.gather(), **engine.facts(), "threads": threads.record()},
    }
    return said, model


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


@contextmanager
def _softly(on_note: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Within this a signal that ends the process ends the update first; a second one ends it at once."""
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def hear(number: int, frame: object) -> None:
        heard.append(number)
        on_note("stopping after this update; once more ends at once, with the last checkpoint")
        for each, handler in before.items():
            signal.signal(each, handler)

    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, hear)
        yield lambda: bool(heard)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
