"""reports/: what a verification, a recorded run or a bench found, a JSON document each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kit import paths
from kit.errors import Command, KitError, WrongUsage
from kit.files import beside, cause_of

FORMAT = 1
KINDS = ("manifest", "run", "bench", "tune", "batch")


@dataclass(frozen=True)
class Report:
    """`kind` is one of KINDS; `content` as that kind has it; `time` in UTC, ISO 8601."""

    kind: str
    time: str
    content: dict[str, Any]


def write(kind: str, content: dict[str, Any]) -> Path:
    """Writes reports/<kind>-<time>.json, whole or not at all. Raises KitError where that cannot be done."""
    now = datetime.now(UTC)
    path = paths.REPORTS / f"{kind}-{now:%Y%m%dT%H%M%S}-{now.microsecond:06}.json"
    document = {"kind": kind, "format": FORMAT, "time": now.isoformat(timespec="seconds"), **content}
    text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
    return _write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_beside(report: Path, suffix: str, put: Callable[[Path], object]) -> Path:
    """Writes another form of the report under its name with `suffix`; `put` writes the path that it is given."""
    return _write(report.with_suffix(suffix), put)


def _write(path: Path, put: Callable[[Path], object]) -> Path:
    try:
        paths.REPORTS.mkdir(parents=True, exist_ok=True)
        with beside(path) as partial:
            put(partial)
    except OSError as error:
        cause, mend = cause_of(error)
        raise KitError(f"the report {path.name} could not be written: {cause}.", mend) from error
    except Exception as error:  # a picture, of a library that draws
        raise KitError(f"the report {path.name} could not be made: {error}.", "please report it") from error
    return path


def latest_two() -> tuple[Path, Path]:
    """The latest report that has an earlier one of its kind, behind that one; as a person types them. Raises WrongUsage
    where there are no two of a kind."""
    later: dict[str, Path] = {}
    names = (path.name for path in paths.REPORTS.glob("*-*.json"))
    for name in sorted(names, key=lambda name: name.partition("-")[2], reverse=True):
        kind = name.partition("-")[0]
        if kind in later:
            return Path("reports") / name, Path("reports") / later[kind].name
        if kind in KINDS:
            later[kind] = Path(name)
    hint = Command("verify"), " writes one, and a run with RECORD=1"
    raise WrongUsage("reports/ has no two reports of a kind.", *hint)


def read(path: Path) -> Report:
    """Raises WrongUsage for a file that is not there or is no report of this version."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        kind, version, time = document.pop("kind"), document.pop("format"), document.pop("time")
    except OSError as error:
        raise WrongUsage(f"{path} cannot be read: {error.strerror or error}.", "ls reports/") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WrongUsage(f"{path} is not a report of the kit.", "ls reports/") from error
    if kind not in KINDS or version != FORMAT:
        raise WrongUsage(f"{path} is a report of another version of the kit ({kind}, format {version}).", "ls reports/")
    return Report(kind, time, document)


# --- What differs between two reports of one kind, most important first -----------------------------------------------


# What decides a result comes first: whether it is the same, then the model, the kit, what was asked, the libraries that
# compute, the processor, and the rest of the environment.
ORDER = (
    *("outcome.ok", "outcome.stages", "completion.token_ids", "completion.text", "outcome", "model"),
    *("base", "data", "settings", "updates", "after"),
    *("facts.kit", "request", "facts.packages.torch", "facts.packages.transformers", "facts.packages.tokenizers"),
    *("facts.packages.safetensors", "facts.packages.xllamacpp", "facts.torch", "facts.llamacpp"),
    *("facts.environment", "facts.cpu", "facts.os", "facts.python"),
    *("facts.packages", "facts", "completion"),
)
# Never twice the same, and no difference of what was run.
MEASURED = ("_s", "_per_s", "_bytes", "readiness")


@dataclass(frozen=True)
class Difference:
    """`name` is the dotted place in the report; `a` and `b` what stands there, None where nothing does."""

    name: str
    a: Any
    b: Any


def compare(a: Report, b: Report) -> list[Difference]:
    """What differs; empty where the two are the same. Raises WrongUsage for two kinds."""
    if a.kind != b.kind:
        raise WrongUsage(f"A is a {a.kind} and B a {b.kind}: two of one kind compare.", "ls reports/")
    return differences(a.content, b.content)


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[Difference]:
    """The same for two documents."""
    left, right = flat(a), flat(b)
    found = [
        Difference(name, left.get(name), right.get(name))
        for name in {**left, **right}
        if left.get(name) != right.get(name) and not name.endswith(MEASURED)
    ]
    return sorted(found, key=lambda difference: (_rank(difference.name), difference.name))


def flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`; lists stay whole."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _rank(name: str) -> int:
    return next((rank for rank, start in enumerate(ORDER) if name == start or name.startswith(f"{start}.")), len(ORDER))
