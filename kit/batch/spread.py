"""A batch over the nodes of a Ray cluster, through Ray Data: this machine reads IN and writes OUT, the nodes answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.batch import cluster, prompts
from kit.batch.prompts import Line
from kit.engines import generate
from kit.engines.engine import Generated
from kit.engines.request import Request
from kit.errors import KitError

if TYPE_CHECKING:
    import pyarrow

AT_ONCE = 8  # prompts for each slot that a node is given at once: it is idle while the last of them ends
LINES = 256  # of IN that travel together, at most
NODES = 1000  # a pool grows to as many as come


def answers(
    path: Path, asked: Request, slots: int, context: int, in_order: bool, has: Callable[[int], bool], numbers: int
) -> Iterator[tuple[Line, Generated | str]]:
    """Each line of IN that is not answered, with what came of it, within `cluster.connected`. What a node that is gone
    was at is done by another. Raises KitError where no node is left."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    told = DataContext.get_current()
    told.execution_options.preserve_order = in_order
    told.enable_progress_bars = told.enable_operator_progress_bars = False
    told.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    here = {f"node:{ray.util.get_node_ip_address()}": 0.001}  # Ray's own, of every node
    done = bytes(has(number) for number in range(numbers + 1))
    source = _source(path, asked, done, slots * AT_ONCE)
    lines = ray.data.read_datasource(source, num_cpus=0, resources=here)
    answered = lines.map_batches(
        Answerer,
        fn_constructor_args=(asked.model.name, _settings(asked), slots, context),
        batch_size=slots * AT_ONCE,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=len(cluster.names(asked.model)), max_size=NODES),
        num_cpus=0,
        resources={cluster.proof().resource: 1, cluster.model_resource(asked.model): 0.0001},
        zero_copy_batch=True,
    )
    try:
        for batch in answered.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for written, came in zip(*(batch.column(name).to_pylist() for name in ("line", "came")), strict=True):
                said = json.loads(came)
                yield _line(written, asked), said if isinstance(said, str) else Generated(**said)
    except ray.exceptions.RayError as error:
        why = (str(error).strip().splitlines() or ["no further word"])[-1]
        raise KitError(f"the cluster gave up: {why[:300]}.", "the same command") from error


class Answerer:
    """On a node: a model that is loaded once, and answers one batch of lines after the other."""

    def __init__(self, model: str, settings: dict[str, Any], slots: int, context: int) -> None:
        from kit.models import registry

        self.slots = slots
        self.asked = Request(registry.find(model), " ", **settings)
        self._loaded = generate.loaded(self.asked, context, lambda device: None, slots=slots)
        self.engine = self._loaded.__enter__()

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        import pyarrow

        written = batch.column("line").to_pylist()
        lines = [_line(each, self.asked) for each in written]
        came: dict[int, Any] = {place: line.error for place, line in enumerate(lines) if not line.request}
        places = [place for place, line in enumerate(lines) if line.request]
        requests = (line.request for line in lines if line.request)
        for number, found in self.engine.generate_all(requests, self.slots):
            came[places[number]] = found.message if isinstance(found, KitError) else asdict(found)
        return pyarrow.table({"line": written, "came": [json.dumps(came[place]) for place in range(len(lines))]})


def _settings(asked: Request) -> dict[str, Any]:
    names = ("method", "device", "dtype", "max_new_tokens", "temperature", "seed", "quant")
    return {name: getattr(asked, name) for name in names}


def _written(line: Line) -> str:
    own = ("prompt", "max_new_tokens", "temperature", "seed")
    request = {name: getattr(line.request, name) for name in own} if line.request else None
    return json.dumps([line.number, line.custom_id, line.error, request])


def _line(written: str, asked: Request) -> Line:
    number, custom_id, error, request = json.loads(written)
    return Line(number, custom_id, replace(asked, **request) if request else None, error)


def _source(path: Path, asked: Request, done: bytes, at_once: int) -> Any:
    """IN as Ray Data reads it: on this machine, a piece at a time, without what is answered already."""
    import pyarrow
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def pieces() -> Iterator[pyarrow.Table]:
        piece: list[str] = []
        for line in prompts.read(path, asked):
            if not done[line.number]:
                piece.append(_written(line))
            if len(piece) == at_once:
                yield pyarrow.table({"line": piece})
                piece = []
        if piece:
            yield pyarrow.table({"line": piece})

    class Prompts(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> int | None:
            return path.stat().st_size

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            metadata = BlockMetadata(num_rows=None, size_bytes=path.stat().st_size, input_files=None, exec_stats=None)
            return [ReadTask(pieces, metadata)]

    return Prompts()
