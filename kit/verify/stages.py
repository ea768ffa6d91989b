"""The proof that this machine runs the model as the reference was recorded: hashes, tokenizer, and a replay of its
text.

The float32 replay always runs on the CPU, where it sees faults far below what bfloat16 hides; the device and number
format that were asked for come on top, with their own tolerance. Where a model has no reference, what float32 on the
CPU makes of the prompts stands in for one: then the methods agree with each other, which is less than to reproduce.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kit.engines import methods
from kit.engines.engine import Engine
from kit.engines.request import Request
from kit.environment import facts as environment
from kit.errors import Command, KitError, WrongUsage
from kit.files import Progress, silent
from kit.formats import llama_config
from kit.models import examine
from kit.models import folder as model_folder
from kit.models.registry import Model
from kit.verify import golden, replay, tolerances
from kit.verify.golden import Golden
from kit.verify.tolerances import Verdict

FLOAT32 = "float32"  # what the reference is in
REPRODUCTION, AGREEMENT = "reproduction", "agreement"


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

    `facts` is what the engines said of themselves; `proof` is REPRODUCTION or AGREEMENT.
    """

    model: Model
    method: str
    device: str
    dtype: str
    stages: tuple[Stage, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    proof: str = REPRODUCTION

    @property
    def ok(self) -> bool:
        return all(stage.ok for stage in self.stages)

    @property
    def failed(self) -> Stage | None:
        return next((stage for stage in self.stages if not stage.ok), None)


def verify(request: Request, on_progress: Progress = silent) -> Verification:
    """Every stage in turn, for the model, method, device and number format of `request`. Raises KitError where there is
    no model, or a device cannot run, WrongUsage for names that are unknown."""
    model = request.model
    methods.check(request)
    golden.require_meaning(model)
    if len(model_folder.missing(model)) == len(model.files):
        model_folder.check(model)
    reference = golden.read(model)
    proof = REPRODUCTION if reference else AGREEMENT
    hashes = _check_hashes(model, on_progress)
    if not hashes.ok:
        return Verification(model, request.method, request.device, request.dtype, (hashes,), proof=proof)
    asked = methods.prepare(request)
    # The method that was asked for, where it has float32.
    exact = asked.method if FLOAT32 in asked.formats(model) else methods.REFERENCE.method
    engines = [methods.prepare(Request(model, method=exact, device="cpu", dtype=FLOAT32))]
    if (asked.device.name, asked.device.number_format) != ("cpu", FLOAT32):
        engines.append(asked)
    elif not reference:  # nothing agrees with itself alone
        engines.append(methods.prepare(Request(model, method=exact, device="cpu")))
    facts: dict[str, Any] = {}
    held = _held(engines, reference, facts, on_progress)
    return Verification(
        model, request.method, asked.device.name, asked.device.number_format, (hashes, *held), facts, proof
    )


def _held(
    engines: list[Engine], reference: Golden | None, facts: dict[str, Any], on_progress: Progress
) -> Iterator[Stage]:
    """Each engine, held to the reference; where there is none, to what the first makes of the prompts."""
    agreement = reference is None
    for engine in engines:
        model, where = engine.model, engine.device
        engine.write_file(on_progress)
        on_progress(f"{model.name} in {where.number_format} on {where.name}: loading", 0)
        # Closed before the next one is loaded: two at once would not fit into a small machine.
        with engine:
            texts = reference.entries if reference else ()
            engine.load(max((len(entry.ids) for entry in texts), default=min(golden.LONG_TOKENS, model.context)))
            facts.update(engine.facts())
            if reference is None:
                reference = _read_out(engine, on_progress)
                yield _numbers(reference)
                continue
            if agreement or engine is engines[0]:
                tokens = check_tokenizer(engine, reference)
                yield tokens
                if not tokens.ok:
                    return
            is_tuned = engine.model.base is not None
            yield judge_replay(engine.logprobs, reference, where.name, where.number_format, on_progress, is_tuned)


def _read_out(engine: Engine, on_progress: Progress) -> Golden:
    """What a loaded engine makes of the prompts, for others to be held to: nobody's reference, and not written."""
    model, prompts, entries = engine.model, golden.prompts(), []
    for entry in replay.read_out(engine, prompts):
        entries.append(entry)
        on_progress(f"{model.name} in {engine.device.number_format}: reading", len(entries) / len(prompts))
    return Golden(model.name, model.revision, golden.files_of(model), {}, tuple(entries))


def _numbers(found: Golden) -> Stage:
    """The stage that says whether there is anything to be held to."""
    values = [value for entry in found.entries for value in entry.logprobs]
    lost = sum(not math.isfinite(value) for value in values)
    faults = (f"{lost} log-probabilities are no numbers: these weights compute nothing",) if lost else ()
    return Stage(FLOAT32, f"on cpu: {len(values)} log-probabilities, which the next are held to", faults)


def _check_hashes(model: Model, on_progress: Progress) -> Stage:
    done = 0
    files = [*model.files, *(model.base.files if model.base else ())]
    size_of_all = sum(file.size for file in files)

    def count(size: int) -> None:
        nonlocal done
        done += size
        on_progress("hashing the files", done / size_of_all)

    try:
        model_folder.verify(model, count)
    except KitError as error:
        return Stage("hashes", error.message, (error.message,))
    return Stage("hashes", f"{len(files)} files, {size_of_all / 1e9:.2f} GB, every sha256 as pinned")


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
    measured: replay.Measure,
    reference: Golden,
    device: str,
    number_format: str,
    on_progress: Progress,
    tuned: bool = False,
) -> Stage:
    """The reference beside what `measured` gives, judged; `tuned` for a tuned model."""
    names = [entry.name for entry in reference.entries]

    def show(name: str) -> None:
        on_progress(f"{reference.model} in {number_format} on {device}: replaying", names.index(name) / len(names))

    verdict = tolerances.judge(replay.compare(measured, reference, show), device, number_format, tuned)
    found = verdict.replay
    text = (
        f"on {device}: {found.positions} log-probabilities, off by {found.mean:.4f} on average and "
        f"{found.largest:.3f} at most ({verdict.tolerance.mean} and {verdict.tolerance.largest} allowed"
        f"{', provisional: not measured on a Mac yet' if verdict.tolerance.provisional else ''})"
    )
    return Stage(number_format, text, verdict.faults, verdict)


def record(model: Model, force: bool = False, on_progress: Progress = silent) -> Golden:
    """Writes the model's reference, in float32 on this machine's CPU.

    Raises WrongUsage where there is one already, KitError where the methods do not agree on what the model says: then
    nobody knows whose word the reference would be.
    """
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
    _require_agreement(model, on_progress)
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


def _require_agreement(model: Model, on_progress: Progress) -> None:
    """Raises KitError where what PyTorch gives in float32 is not what it gives in its usual format, or llama.cpp gives
    of the same weights, within the tolerances."""
    requests = [
        Request(model, method=methods.REFERENCE.method, device="cpu", dtype=dtype) for dtype in (FLOAT32, "auto")
    ]
    if not examine.examination(model).against(llama_config.LLAMACPP):
        requests.append(Request(model, method="llamacpp", device="cpu", quant="bf16"))
    engines = [methods.prepare(request) for request in requests]
    failed = next((stage for stage in _held(engines, None, {}, on_progress) if not stage.ok), None)
    if failed:
        raise KitError(
            f"the methods do not agree on {model.name}, so it gives no reference: {failed.name}: {failed.faults[0]}.",
            Command("verify", MODEL=model.name),
            " says more; where another machine agrees, do not trust this one",
        )
