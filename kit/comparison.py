"""What differs between two reports of one kind, most important first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kit.errors import WrongUsage
from kit.reports import Report

# What decides a result comes first: whether it is the same, then the model, the kit, what was asked, the libraries that
# compute, the processor, and the rest of the environment.
ORDER = (
    *("outcome.ok", "outcome.stages", "completion.token_ids", "completion.text", "outcome", "model"),
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
