"""`make batch`: IN through an engine that is loaded once, to OUT; what is there already is not done again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kit import files
from kit.batch import answers, cluster, prompts, spread
from kit.batch.answers import Answers, Count
from kit.batch.prompts import Extent, Line
from kit.engines import generate, imports, memory, threads
from kit.engines.devices import Device
from kit.engines.engine import Engine, Generated
from kit.engines.request import Request
from kit.environment import facts
from kit.errors import Command, KitError, WrongUsage
from kit.files import Progress

# What of the request decides every answer, beside model, device and number format.
DECIDING = ("method", "max_new_tokens", "temperature", "seed")


@dataclass(frozen=True)
class Asked:
    """`request` has what a line does not say of itself; `source` is IN, `target` OUT, and `typed` how they were typed:
    a container sees them elsewhere. With `in_order` the answers stand in the order of IN."""

    request: Request
    source: Path
    target: Path
    slots: int
    in_order: bool
    typed: Command
    ray: str | None = None  # the address of a cluster's head, or auto

    @property
    def names(self) -> tuple[str, str]:
        """Of IN and OUT, as a person knows them."""
        return self.typed.variables["IN"], self.typed.variables["OUT"]


@dataclass(frozen=True)
class Listener:
    """Who is told of a batch: the `device` before the weights are read, how far it is, what a person has to know of a
    cluster; `lost` ends the process where the cluster's head is gone."""

    device: Callable[[Device], None]
    progress: Progress
    note: Callable[[str], None]
    lost: Callable[[KitError], NoReturn]


def batch(asked: Asked, listener: Listener) -> dict[str, Any]:
    """Answers each line of IN in OUT that is not answered there; the content of reports/batch-*.json.

    A line that cannot be answered has its error in its place. Raises KitError as `generate.complete` does, WrongUsage
    where IN is no file of prompts, and where OUT holds something else. Whatever ends it, OUT has what was done.
    """
    started = time.perf_counter()
    if asked.target.exists() and asked.source.exists() and asked.target.samefile(asked.source):
        raise WrongUsage("IN and OUT are the same file.", Command("batch", IN=asked.names[0], OUT="answers.jsonl"))
    engine = generate.prepared(asked.request)
    extent = prompts.look_through(asked.source, asked.request, listener.progress, engine.fit)
    decides = settings(asked, engine)
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    with answers.opened(asked.target, extent, digest, asked.typed) as out:
        before = Count(**vars(out.count))
        ran: dict[str, Any] = {}
        if before.done < extent.lines:
            show = _shown(out, extent, listener.progress)
            ran = (_spread if asked.ray else _answer)(asked, engine, extent, out, show, listener)
        count = out.count
    return {
        "facts": {**facts.gather(), **ran.pop("facts", {})},
        **decides,
        "in": {"name": asked.names[0], "sha256": extent.sha256, "prompts": extent.lines},
        "out": {"name": asked.names[1], "sha256": files.sha256(asked.target)},
        "outcome": {"answered": count.done - count.failed, "failed": count.failed, "new_tokens": count.tokens},
        "first_error": count.first_error,
        "before": {"done": before.done, "new_tokens": before.tokens},
        **ran,
        "total_s": time.perf_counter() - started,
        "peak_rss_bytes": memory.peak_rss_bytes(),
    }


def settings(asked: Asked, engine: Engine) -> dict[str, Any]:
    """All that decides an answer, beside the line."""
    request = {name: getattr(asked.request, name) for name in DECIDING}
    request |= {"device": engine.device.name, **engine.number_formats, "slots": asked.slots, "order": asked.in_order}
    model = asked.request.model.identity()
    versions = imports.versions(engine.packages)
    del versions["python"]  # the container's may be another, and computes nothing
    return {"model": model, "request": request, "versions": versions}


def _shown(out: Answers, extent: Extent, on_progress: Progress) -> Callable[[], dict[str, float]]:
    """Shows how far it is, from the first call on; gives the time and the speed since then."""
    started: list[float] = []
    before = out.count.tokens

    def show() -> dict[str, float]:
        if not started:
            started.append(time.perf_counter())
        seconds, new = time.perf_counter() - started[0], out.count.tokens - before
        speed = new / seconds if new else 0.0
        what = f"{out.count.done} of {extent.lines} prompts" + (f", {speed:.0f} tokens/s" if new else "")
        on_progress(what, out.count.done, extent.lines)
        return {"answering_s": seconds, "tokens_per_s": speed}

    return show


def _answer(
    asked: Asked, engine: Engine, extent: Extent, out: Answers, show: Callable[[], dict[str, float]], listener: Listener
) -> dict[str, Any]:
    """Loads the model, and answers what is missing."""
    context = min(max(extent.longest, 1), asked.request.model.context)
    with generate.loaded(asked.request, context, listener.device, listener.progress, asked.slots) as engine:
        times = show()
        desk = _Desk(out, engine.examined.ends, asked.in_order)
        requests = desk.requests(prompts.read(asked.source, asked.request))
        # Ended by Ctrl-C, it ends before the engine does: that would wait for what is under way.
        with closing(engine.generate_all(requests, asked.slots)) as answered:
            for place, came in answered:
                desk.put(place, came.message if isinstance(came, Exception) else came)
                times = show()
        return {"facts": {**engine.facts(), "threads": threads.record()}, **times}


def _spread(
    asked: Asked, engine: Engine, extent: Extent, out: Answers, show: Callable[[], dict[str, float]], listener: Listener
) -> dict[str, Any]:
    """Lets the nodes of a cluster answer what is missing."""
    context = min(max(extent.longest, 1), asked.request.model.context)
    listener.device(engine.device)
    with cluster.connected(asked.ray or "auto", listener.lost):
        for told in cluster.require_nodes(asked.request.model):
            listener.note(f"takes no prompt: {told}")
        listener.note(f"nodes that take prompts: {', '.join(cluster.names(asked.request.model))}")
        times = show()
        source = asked.source.resolve()
        for line, came in spread.answers(
            source, asked.request, asked.slots, context, asked.in_order, out.has, extent.numbers
        ):
            if not out.has(line.number):
                out.write(line, came, engine.examined.ends)
            times = show()
        return {"nodes": cluster.names(asked.request.model), **times}


class _Desk:
    """Lines on their way to an engine and back: what is answered already stays out, what cannot be asked goes straight
    to OUT, and where an order is wanted an answer waits for those before it."""

    def __init__(self, out: Answers, ends: tuple[int, ...], in_order: bool) -> None:
        self._out, self._ends, self._in_order = out, ends, in_order
        self._asked: dict[int, int] = {}  # the line of a request, by its place among them
        self._waiting: dict[int, tuple[Line, Generated | str | None]] = {}  # by the line's number, in the order of IN

    def requests(self, lines: Iterator[Line]) -> Iterator[Request]:
        """What the engine is asked; it is read as far as the engine works ahead."""
        place = 0
        for line in lines:
            if self._out.has(line.number):
                continue
            self._waiting[line.number] = line, None
            if line.request:
                self._asked[place] = line.number
                place += 1
                yield line.request
            else:
                self._settle(line.number, line.error)

    def put(self, place: int, came: Generated | str) -> None:
        """What came of the request at a place among those that were asked."""
        self._settle(self._asked.pop(place), came)

    def _settle(self, number: int, came: Generated | str) -> None:
        line, _ = self._waiting[number]
        if not self._in_order:
            del self._waiting[number]
            self._out.write(line, came, self._ends)
            return
        self._waiting[number] = line, came
        while self._waiting:
            first, (line, ready) = next(iter(self._waiting.items()))
            if ready is None:
                return
            del self._waiting[first]
            self._out.write(line, ready, self._ends)
