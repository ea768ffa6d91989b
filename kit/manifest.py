"""The manifest: what a machine is, what was verified on it, and how it went; and the readiness code that sums it up."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kit import facts, machine, readiness
from kit.readiness import Code
from kit.registry import Model
from kit.verification import Stage, Verification


def of(done: Verification) -> dict[str, Any]:
    """The content of reports/manifest-*.json."""
    return {
        "facts": {**facts.gather(), **({"torch": facts.of_torch()} if len(done.stages) > 1 else {})},
        "model": about(done.model),
        # A replay draws nothing.
        "request": {"method": done.method, "device": done.device, "dtype": done.dtype, "seed": None},
        "outcome": {"ok": done.ok, "stages": {stage.name: _outcome(stage) for stage in done.stages}},
        "readiness": readiness.encode(code(done)),
    }


def about(model: Model) -> dict[str, Any]:
    """Which model it is: the commit and the sha256 of every file."""
    files = {file.path: file.sha256 for file in model.files}
    return {"name": model.name, "repo_id": model.repo_id, "revision": model.revision, "files": files}


def code(done: Verification) -> Code:
    """What the attendee sends."""
    here = machine.this()
    system = "macos" if here.system == "Darwin" else here.system.lower()
    return Code(
        outcome=done.failed.name if done.failed else "ok",
        model=done.model.name,
        device=done.device,
        dtype=done.dtype,
        platform=f"{system}-{here.arch}",
        python=".".join(facts.gather()["python"]["version"].split(".")[:2]),
        commit=readiness.short(facts.commit()),
        lock=facts.lock_sha256()[:8],
        files=readiness.files_digest(done.model),
    )


def _outcome(stage: Stage) -> dict[str, Any]:
    found: dict[str, Any] = {"ok": stage.ok, "faults": list(stage.faults)}
    if stage.verdict:
        seen = stage.verdict.replay
        common = {name: list(tokens) for name, tokens in seen.common.items()}
        flips = [{**asdict(flip), "explained": flip not in stage.verdict.unexplained} for flip in seen.flips]
        found |= {"mean": seen.mean, "largest": seen.largest, "flips": flips, "common": common}
    return found
