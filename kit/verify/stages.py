"""The proof that this machine runs the model as the reference was recorded: hashes, tokenizer, and a replay of its
text.

The float32 replay always runs on the CPU, where it sees faults far below what bfloat16 hides; the device and number
format that were asked for come on top, with their own tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kit.engines import devices, imports, llamacpp_engine, methods, torch_engine
from kit.engines.devices import Device
from kit.environment import facts
from kit.errors import KitError, WrongUsage
from kit.models import folder as model_folder
from kit.models import gguf_files
from kit.models.gguf_files import Quant
from kit.models.registry import Model
from kit.verify import golden, replay, tolerances
from kit.verify.golden import Golden
from kit.verify.tolerances import Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


REFERENCE = Device("cpu", "float32", "the reference's", "the reference's")

# What is at work, and the share of it that is done (0 to 1).
Progress = Callable[[str, float], None]


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
    """What was verified, where, and how it went: the stages in order, up to the first that makes the next one moot."""

    model: Model
    method: str
    device: str
    dtype: str
    stages: tuple[Stage, ...]

    @property
    def ok(self) -> bool:
        return all(stage.ok for stage in self.stages)

    @property
    def failed(self) -> Stage | None:
        return next((stage for stage in self.stages if not stage.ok), None)


def verify(
    model: Model,
    device: str = "auto",
    dtype: str = "auto",
    method: str = "manual",
    quant: str = "auto",
    on_progress: Progress = lambda what, share: None,
) -> Verification:
    """Every stage in turn. Raises KitError where there is no reference, no model, or a device cannot run."""
    if method not in methods.NAMES:
        raise WrongUsage(f"METHOD={method} is unknown. Valid: {', '.join(methods.NAMES)}.")
    methods.check_format(method, dtype, quant)
    gguf = gguf_files.choose(model, quant) if method == methods.LLAMACPP else None
    reference = golden.read(model)
    if len(model_folder.missing(model)) == len(model.files):
        model_folder.check(model)
    hashes = _check_hashes(model, on_progress)
    if not hashes.ok:
        return Verification(model, method, device, dtype, (hashes,))
    if gguf:
        gguf_files.ensure(model, gguf, on_progress)
        asked = devices.choose_for_llamacpp(device, gguf)
    else:
        asked = devices.choose(device, dtype, torch_engine.checkpoint_dtype(model))
    on_progress("importing the libraries", 0)
    imports.import_all()
    stages = [hashes]
    for where in (REFERENCE, asked):
        again = (where.name, where.dtype) == (REFERENCE.name, REFERENCE.dtype) and len(stages) > 1
        if not again and all(stage.ok or stage.verdict for stage in stages):
            on_progress(f"{model.name} in {where.dtype} on {where.name}: loading", 0)
            if gguf and where is asked:
                stages.append(_replay_through_llamacpp(where, model, gguf, reference, on_progress))
            else:
                through = "manual" if gguf else method
                stages += _replay_on(where, model, through, reference, on_progress, with_tokenizer=len(stages) == 1)
    return Verification(model, method, asked.name, asked.dtype, tuple(stages))


def _replay_on(
    where: Device, model: Model, method: str, reference: Golden, on_progress: Progress, with_tokenizer: bool
) -> list[Stage]:
    """Loads the model, and lets go of it at the end: two at once would not fit into a small machine."""
    loaded = torch_engine.load_model(model, method, where)
    stages = [check_tokenizer(loaded.tokenizer, reference)] if with_tokenizer else []
    if all(stage.ok for stage in stages):
        stages.append(check_replay(loaded.model, reference, where.name, where.dtype, on_progress))
    return stages


def _replay_through_llamacpp(
    where: Device, model: Model, gguf: Quant, reference: Golden, on_progress: Progress
) -> Stage:
    context = max(len(entry.ids) for entry in reference.entries)
    replaying = llamacpp_engine.LlamacppReplay(model, gguf, where.name, context)
    try:
        return judge_replay(replaying.measure, reference, where.name, where.dtype, on_progress)
    finally:
        replaying.close()


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


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, reference: Golden) -> Stage:
    """The prompts give the reference's tokens, and its continuations' tokens give their text."""
    texts, faults, count = golden.prompts(), [], 0
    for entry in reference.entries:
        prompt_ids = list(entry.ids[: entry.prompt_tokens])
        count += len(entry.ids)
        if replay.encode(tokenizer, entry.name, texts.get(entry.name, "")) != prompt_ids:
            faults.append(f"the prompt {entry.name!r} gives other tokens")
        elif tokenizer.decode(list(entry.continuation)) != entry.text:
            faults.append(f"the continuation of {entry.name!r} gives another text")
    return Stage("tokenizer", f"{len(reference.entries)} prompts, {count} tokens", tuple(faults))


def check_replay(model: Any, reference: Golden, device: str, dtype: str, on_progress: Progress) -> Stage:
    """The reference, replayed on a loaded model, and judged."""

    def measured(ids: tuple[int, ...], first: int) -> tuple[list[float], list[float]]:
        return replay.measure(model, ids, first)

    return judge_replay(measured, reference, device, dtype, on_progress)


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


def record(model: Model, force: bool = False, on_progress: Progress = lambda what, share: None) -> Golden:
    """Writes the model's reference, in float32 on this machine's CPU. Raises WrongUsage where there is one already."""
    golden.require_meaning(model)
    path = golden.path_of(model)
    if path.exists() and not force:
        raise WrongUsage(
            f"env/golden/{path.name} is there already, and others compare with it.",
            f"make verify MODEL={model.name}, or, to replace it: make verify MODEL={model.name} RECORD=1 FORCE=1",
        )
    model_folder.verify(model)
    imports.import_all()
    loaded = methods.load_manual(model.folder, REFERENCE)
    prompts = golden.prompts()
    entries = []
    for entry in replay.record(loaded.model, loaded.tokenizer, prompts):
        entries.append(entry)
        on_progress(f"recording {model.name} in float32", len(entries) / len(prompts))
    here = facts.gather()
    here["packages"] = {name: here["packages"][name] for name in ("torch", "transformers", "tokenizers")}
    recorded = {name: here[name] for name in ("kit", "python", "packages", "os", "cpu")}
    found = Golden(model.name, model.revision, golden.files_of(model), recorded, tuple(entries))
    golden.write(found, path)
    return found
