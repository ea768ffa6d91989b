"""Two batches, prompt by prompt: which completions differ, and from which token on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from kit import files, reports
from kit.batch import answers
from kit.errors import WrongUsage
from kit.paths import ROOT
from kit.reports import Difference, Report

CAUSES = ("model", "request", "versions", "facts")
SHOWN = 50  # characters of a prompt


def differences(a: Report, b: Report) -> Iterator[Difference]:
    """Each prompt whose completion differs, in the order of A's answers, then what it may come from.

    Lines of the same IN belong together by number, others by their id, and where they have none by number. Raises
    WrongUsage where OUT is no longer what the report says.
    """
    left, right = _out(a), _out(b)
    same_in = a.content["in"]["sha256"] == b.content["in"]["sha256"]
    # Where each answer stands, and not what it says: a file may be larger than memory.
    places = {_key(number, answer, same_in): place for place, number, answer in answers.read(right)}
    with right.open("rb") as file:
        for _, number, one in answers.read(left):
            place = places.pop(_key(number, one, same_in), None)
            if place is None:
                yield Difference(f"{_name(number, one)}: in A alone", _said(one), None)
                continue
            file.seek(place)
            other = json.loads(file.readline())
            first = _first_other(_ids(one), _ids(other))
            if first is not None or bool(one["error"]) != bool(other["error"]):
                where = "" if first is None else f": from token {first + 1} on"
                yield Difference(f"{_name(number, one)}{where}", _said(one), _said(other))
        for place in places.values():
            file.seek(place)
            other = json.loads(file.readline())
            number = int(other["id"].rpartition("-")[2])
            yield Difference(f"{_name(number, other)}: in B alone", None, _said(other))
    then, now = ({name: report.content[name] for name in CAUSES} for report in (a, b))
    yield from reports.differences(then, now)


def _out(report: Report) -> Path:
    path: Path = ROOT / report.content["out"]["name"]
    try:
        whole: bool = files.sha256(path) == report.content["out"]["sha256"]
    except OSError as error:
        raise WrongUsage(f"the answers of a batch are not where they were written: {path}.") from error
    if not whole:
        raise WrongUsage(f"{path} is no longer what the report says of it.", "the latest report of that file")
    return path


def _key(number: int, answer: dict[str, Any], same_in: bool) -> int | str:
    return number if same_in or answer["custom_id"] is None else str(answer["custom_id"])


def _name(number: int, answer: dict[str, Any]) -> str:
    prompt = " ".join(answer["response"]["body"]["prompt"].split()) if answer["response"] else ""
    shown = prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]} …"
    return ", ".join(part for part in (f"line {number}", answer["custom_id"], shown and f"“{shown}”") if part)


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    choice: dict[str, Any] = answer["response"]["body"]["choices"][0]
    return choice


def _ids(answer: dict[str, Any]) -> list[int]:
    return list(_choice(answer)["token_ids"]) if answer["response"] else []


def _said(answer: dict[str, Any]) -> str:
    return str(_choice(answer)["text"] if answer["response"] else answer["error"]["message"])


def _first_other(a: list[int], b: list[int]) -> int | None:
    return next((place for place, (one, other) in enumerate(zip_longest(a, b)) if one != other), None)
