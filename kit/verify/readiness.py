"""The readiness code: one line that an attendee sends to the organiser, and the table that many of them make.

Fields between colons: form, outcome (`ok`, `agrees` where there was no reference, or the stage that failed), model,
device, number format, platform, Python,
and the beginnings of the kit's commit, the lock's sha256 and the model's; at the end a check of them all, for typing
errors.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass
from typing import Any

from kit.environment import facts, machine
from kit.errors import KitError
from kit.models.registry import Model
from kit.paths import ROOT
from kit.verify import golden
from kit.verify.stages import REPRODUCTION, Stage, Verification

FORM = "bmk1"
OK, AGREES = "ok", "agrees"
PATTERN = re.compile(rf"{FORM}(?::[A-Za-z0-9._+-]+){{10}}")


@dataclass(frozen=True)
class Code:
    """What a code says. `commit`, `lock` and `files` are the first eight hex digits."""

    outcome: str
    model: str
    device: str
    dtype: str
    platform: str
    python: str
    commit: str
    lock: str
    files: str


@dataclass(frozen=True)
class Attendee:
    """A line of the organiser's list: who it is, whether they are ready, and why not."""

    name: str
    code: Code | None
    reasons: tuple[str, ...]

    @property
    def ready(self) -> bool:
        return not self.reasons


def files_digest(model: Model) -> str:
    """Eight hex digits for the model's files."""
    pinned = "\n".join(f"{path} {sha256}" for path, sha256 in sorted(golden.files_of(model).items()))
    return hashlib.sha256(pinned.encode()).hexdigest()[:8]


def short(commit: str) -> str:
    """Eight hex digits, and a + where files differ from the commit."""
    return commit[:8] + ("+" if commit.endswith("-changed") else "")


def encode(code: Code) -> str:
    line = ":".join([FORM, *astuple(code)])
    return f"{line}:{_check(line)}"


def decode(line: str) -> Code:
    """Raises KitError for a line that is no code, or was mistyped."""
    found = PATTERN.search(line)
    if not found:
        raise KitError("there is no readiness code in this line")
    body, _, check = found.group().rpartition(":")
    if _check(body) != check:
        raise KitError("the code was mistyped or cut short")
    return Code(*body.split(":")[1:])


def _check(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()[:4]


def judge(lines: Iterable[str], models: dict[str, Model]) -> list[Attendee]:
    """An Attendee for each line that is not empty and no comment: a name, and the code behind it.

    Ready is who verified the files, the lock and the commit that this clone has.
    """
    commit = short(facts.commit()).rstrip("+")
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name = line.partition(FORM)[0].strip(" \t,;:-") or f"line {number}"
        try:
            code = decode(line)
        except KitError as error:
            found.append(Attendee(name, None, (error.message,)))
            continue
        found.append(Attendee(name, code, tuple(_reasons(code, models, commit))))
    return found


def _reasons(code: Code, models: dict[str, Model], commit: str) -> Iterable[str]:
    if code.outcome not in (OK, AGREES):
        yield f"the stage {code.outcome} failed"
    if code.model not in models:
        yield f"verified {code.model}, which this clone does not know"
    elif code.files != files_digest(models[code.model]):
        yield f"other files of {code.model}"
    elif code.outcome == AGREES and golden.path_of(models[code.model]).exists():
        yield "its methods agree, but it had no reference to be held to, and this clone has one"
    if code.commit != commit:
        yield f"the kit at {code.commit}, and this clone is at {commit}"
    lock = ROOT / "env" / "lock" / ("macos.txt" if code.platform.startswith("macos") else "linux.txt")
    if code.lock != hashlib.sha256(lock.read_bytes()).hexdigest()[:8]:
        yield "another lock"


# --- The manifest: what a machine is, what was verified on it, and how it went ----------------------------------------


def manifest(done: Verification) -> dict[str, Any]:
    """The content of reports/manifest-*.json."""
    return {
        "facts": {**facts.gather(), **done.facts},
        "model": done.model.identity(),
        # A replay draws nothing.
        "request": {"method": done.method, "device": done.device, "dtype": done.dtype, "seed": None},
        "outcome": {
            "ok": done.ok,
            "proof": done.proof,
            "stages": {stage.name: _outcome(stage) for stage in done.stages},
        },
        "readiness": encode(code(done)),
    }


def code(done: Verification) -> Code:
    """What the attendee sends."""
    here = machine.this()
    good = OK if done.proof == REPRODUCTION else AGREES
    system = "macos" if here.system == "Darwin" else here.system.lower()
    return Code(
        outcome=done.failed.name if done.failed else good,
        model=done.model.name,
        device=done.device,
        dtype=done.dtype,
        platform=f"{system}-{here.arch}",
        python=".".join(facts.gather()["python"]["version"].split(".")[:2]),
        commit=short(facts.commit()),
        lock=facts.lock_sha256()[:8],
        files=files_digest(done.model),
    )


def _outcome(stage: Stage) -> dict[str, Any]:
    found: dict[str, Any] = {"ok": stage.ok, "faults": list(stage.faults)}
    if stage.verdict:
        seen = stage.verdict.replay
        common = {name: list(tokens) for name, tokens in seen.common.items()}
        flips = [{**asdict(flip), "explained": flip not in stage.verdict.unexplained} for flip in seen.flips]
        found |= {"mean": seen.mean, "largest": seen.largest, "flips": flips, "common": common}
    return found
