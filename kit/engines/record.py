"""A run, written down so that it can be repeated: what was asked, what came, and what it depended on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from kit import reports
from kit.engines.request import Completion, Request
from kit.environment import facts
from kit.errors import Command, WrongUsage
from kit.models import registry
from kit.reports import Difference, Report

ASKED = ("prompt", "method", "device", "dtype", "max_new_tokens", "temperature", "seed", "quant")


@dataclass(frozen=True)
class Repetition:
    """Whether a repeated run gave the recorded tokens: `first` is the place of the first other one, None where none is.

    `causes` are the recorded facts that differ here, most important first.
    """

    tokens: int
    first: int | None
    causes: tuple[Difference, ...]


def content(request: Request, completion: Completion) -> dict[str, Any]:
    """The content of reports/run-*.json."""
    return {
        "facts": {**facts.gather(), **completion.facts},
        "model": request.model.identity(),
        "request": {name: getattr(request, name) for name in ASKED},
        "completion": completion.as_dict(),
    }


def request_of(report: Report) -> Request:
    """The same request again; the device and number format that `auto` came to, not `auto`. Raises WrongUsage."""
    if report.kind != "run":
        raise WrongUsage(f"FROM names a report of the kind {report.kind}; a run is repeated.", "ls reports/run-*")
    try:
        # A record from before there was a third method has no `quant`.
        asked = {name: {"quant": "auto", **report.content["request"]}[name] for name in ASKED}
        came = report.content["completion"]
        asked |= {name: came[name] or "auto" for name in ("device", "dtype", "quant")}
        return Request(registry.find(report.content["model"]["name"]), **asked)
    except (KeyError, TypeError) as error:
        hint = Command("run", RECORD="1"), " writes one"
        raise WrongUsage(f"the report lacks what a run needs ({error}).", *hint) from error


def compare(report: Report, now: dict[str, Any]) -> Repetition:
    """What a repetition gave, beside the record. `now` is its content()."""
    then_ids, now_ids = report.content["completion"]["token_ids"], now["completion"]["token_ids"]
    first = next((place for place, (a, b) in enumerate(zip_longest(then_ids, now_ids)) if a != b), None)
    then, here = ({name: content.get(name, {}) for name in ("facts", "model")} for content in (report.content, now))
    return Repetition(len(then_ids), first, tuple(reports.differences(then, here)))
