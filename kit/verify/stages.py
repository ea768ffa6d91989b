"""The proof that this machine runs the model as the reference was recorded: hashes, tokenizer, and a replay of its
text.

The float32 replay always runs on the CPU, where it sees faults far below what bfloat16 hides; the device and number
format that were asked for come on top, with their own tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kit.engines import methods
from kit.engines.engine import Engine
from kit.engines.request import Request
from kit.environment import facts as environment
from kit.errors import Command, KitError, WrongUsage
from kit.files import Progress, silent
from kit.models import folder as model_folder
from kit.models.registry import Model
from kit.verify import golden, replay, tolerances
from kit.verify.golden import Golden
from kit.verify.tolerances import Verdict

FLOAT32 = "float32"  # what the reference is in


@dataclass(frozen=True)
class Stage:
    """One step: `name` is hashes, tokenizer, or a number format; `text` one line, `faults` what is wrong."""

    name: str
    text: str
    faults: tuple[str, ...] = ()
    verdict: Verdict | None = None

    @property
    def ok(self) -> bool:
        return not self.faults


@dataclass(frozen=True)
class Verification:
    """What was verified, where, and how it went: the stages in order, up to the first that makes the next one moot.

    `facts` is what the engines said of themselves.
    """

    model: Model
    method: str
    device: str
    dtype: str
    stages: tuple[Stage, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return all(stage.ok for stage in self.stages)

    @property
    def failed(self) -> Stage | None:
        return next((stage for stage in self.stages if not stage.ok), None)


def verify(request: Request, on_progress: Progress = silent) -> Verification:
    """Every stage in turn, for the model, method, device and number format of `request`. Raises KitError where there is
    no reference, no model, or a device cannot run, WrongUsage for names that are unknown."""
    model = request.model
    methods.check(request)
    golden.require_meaning(model)
    if len(model_folder.missing(model)) == len(model.files):
        model_folder.check(model)
    reference = golden.read(model)
    hashes = _check_hashes(model, on_progress)
    if not hashes.ok:
        return Verification(model, request.method, request.device, request.dtype, (hashes,))
    asked = methods.prepare(request)
    asked.write_file(on_progress)
    # The method that was asked for, where it has float32.
    exact = asked.method if FLOAT32 in asked.formats(model) else methods.REFERENCE.method
    engines = [methods.prepare(Request(model, method=exact, device="cpu", dtype=FLOAT32))]
    if (asked.device.name, asked.device.number_format) != ("cpu", FLOAT32):
        engines.append(asked)
    context = max(len(entry.ids) for entry in reference.entries)
    stages = [hashes]
    facts: dict[str, Any] = {}
    for engine in engines:
        where = engine.device
        on_progress(f"{model.name} in {where.number_format} on {where.name}: loading", 0)
        # Closed before the next one is loaded: two at once would not fit into a small machine.
        with engine:
            engine.load(context)
            facts |= engine.facts()
            if engine is engines[0]:
                stages.append(check_tokenizer(engine, reference))
                if not stages[-1].ok:
                    break
            stages.append(judge_replay(engine.logprobs, reference, where.name, where.number_format, on_progress))
    return Verification(model, request.method, asked.device.name, asked.device.number_format, tuple(stages), facts)


def _check_hashes(model: Model, on_progress: Progress) -> Stage:
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        on_progress("hashing the files", done / model.size)

    try:
        model_folder.verify(model, count)
    except KitError as error:
        return Stage("hashes", error.message, (error.message,))
    return Stage("hashes", f"{len(model.files)} files, {model.size / 1e9:.2f} GB, every sha256 as pinned")


def check_tokenizer(engine: Engine, reference: Golden) -> Stage:
    """The prompts give the reference's tokens, and its continuations' tokens give their text."""
    texts, faults, count = golden.prompts(), [], 0
    for entry in reference.entries:
        prompt_ids = entry.ids[: entry.prompt_tokens]
        count += len(entry.ids)
        if replay.encode(engine, entry.name, texts.get(entry.name, "")) != prompt_ids:
            faults.append(f"the prompt {entry.name!r} gives other tokens")
        elif engine.decode(entry.ids[entry.prompt_tokens :]) != entry.text:
            faults.append(f"the continuation of {entry.name!r} gives another text")
    return Stage("tokenizer", f"{len(reference.entries)} prompts, {count} tokens", tuple(faults))


def judge_replay(
    measured: replay.Measure, reference: Golden, device: str, number_format: str, on_progress: Progress
) -> Stage:
    """The reference beside what `measured` gives, judged."""
    names = [entry.name for entry in reference.entries]

    def show(name: str) -> None:
        on_progress(f"{reference.model} in {number_format} on {device}: replaying", names.index(name) / len(names))

    verdict = tolerances.judge(replay.compare(measured, reference, show), device, number_format)
    found = verdict.replay
    text = (
        f"on {device}: {found.positions} log-probabilities, off by {found.mean:.4f} on average and "
        f"{found.largest:.3f} at most ({verdict.tolerance.mean} and {verdict.tolerance.largest} allowed"
        f"{', provisional: not measured on a Mac yet' if verdict.tolerance.provisional else ''})"
    )
    return Stage(number_format, text, verdict.faults, verdict)


def record(model: Model, force: bool = False, on_progress: Progress = silent) -> Golden:
    """Writes the model's reference, in float32 on this machine's CPU. Raises WrongUsage where there is one already."""
    golden.require_meaning(model)
    path = golden.path_of(model)
    if path.exists() and not force:
        raise WrongUsage(
            f"env/golden/{path.name} is there already, and others compare with it.",
            Command("verify", MODEL=model.name),
            ", or, to replace it: ",
            Command("verify", MODEL=model.name, RECORD="1", FORCE="1"),
        )
    model_folder.verify(model)
    engine = methods.prepare(Request(model, method=methods.REFERENCE.method, device="cpu", dtype=FLOAT32))
    prompts = golden.prompts()
    entries = []
    with engine:
        engine.load(model.context)
        for entry in replay.record(engine, prompts):
            entries.append(entry)
            on_progress(f"recording {model.name} in float32", len(entries) / len(prompts))
    here = environment.gather()
    here["packages"] = {name: here["packages"][name] for name in ("torch", "transformers", "tokenizers")}
    recorded = {name: here[name] for name in ("kit", "python", "packages", "os", "cpu")}
    found = Golden(model.name, model.revision, golden.files_of(model), recorded, tuple(entries))
    golden.write(found, path)
    return found
