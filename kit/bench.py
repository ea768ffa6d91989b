"""The headline experiment: every combination of a plan, turn by turn, and what the hardware would allow.

One after the other within a turn, so that what slows the machine for a while slows all alike; the order turns round
from turn to turn, so that none always follows the same one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from kit import bench_run, facts, manifest, registry, spread
from kit.bench_plan import Combination, Plan
from kit.bench_run import Run
from kit.errors import KitError

# In a process of its own, so that neither torch nor the tensor stays in memory beside the runs.
BANDWIDTH = "import sys; from kit import bandwidth; print(bandwidth.measure(sys.argv[1]))"
NAMES = tuple(column.name for column in fields(Run))

# What comes now, how many steps are done, and of how many.
Step = Callable[[str, int, int], None]


@dataclass
class Row:
    """A combination and its runs so far, one a turn; `failure` is why there are no more."""

    combination: Combination
    runs: list[Run] = field(default_factory=list)
    failure: str | None = None

    def values(self, name: str) -> list[float]:
        """One measurement of each run that has it."""
        return [value for run in self.runs if (value := getattr(run, name)) is not None]


@dataclass
class Bench:
    """What came of a plan: a row a combination, and bytes per second that each device read, one figure a turn."""

    plan: Plan
    rows: list[Row]
    bandwidth: dict[str, list[float]]
    quality: list[dict[str, Any]] | None = None

    interrupted: bool = False

    def measured(self) -> list[Row]:
        return [row for row in self.rows if row.runs]

    @property
    def runs_done(self) -> int:
        """How many runs each row has, but for those that failed: as many as asked for, or fewer after Ctrl-C."""
        return min((len(row.runs) for row in self.rows if not row.failure), default=0)

    def ceiling(self, row: Row) -> float | None:
        """Tokens per second that reading the weights allows; None where the bandwidth is not known."""
        read = self.bandwidth.get(row.combination.device)
        return spread.of(read).median / row.combination.bytes_per_token if read else None

    def share(self, row: Row) -> float | None:
        """How much of the ceiling the decoding reached."""
        ceiling = self.ceiling(row)
        return spread.of(row.values("decode_tokens_per_s")).median / ceiling if ceiling and row.runs else None


def run(plan: Plan, command: list[str], on_step: Step = lambda what, done, count: None) -> Bench:
    """Runs the plan; `command` is the verb `run`. A combination that fails is left out of the turns that follow.

    Ctrl-C ends it early, and what was measured until then counts.
    """
    bench = Bench(plan, [Row(combination) for combination in plan.combinations], {})
    devices = dict.fromkeys(combination.device for combination in plan.combinations)
    count = (plan.turns + 1) * (len(bench.rows) + len(devices))
    done = 0
    try:
        for turn in range(plan.turns + 1):
            name = f"turn {turn} of {plan.turns}" if turn else "warm-up"
            for device in devices:
                on_step(f"{name}: {device}'s bandwidth", done, count)
                read = _bandwidth(device)
                if turn and read:
                    bench.bandwidth.setdefault(device, []).append(read)
                done += 1
            for row in bench.rows if turn % 2 else bench.rows[::-1]:
                on_step(f"{name}: {row.combination}", done, count)
                if row.failure is None:
                    try:
                        measured = bench_run.run(command, plan, row.combination)
                        if turn:
                            row.runs.append(measured)
                    except KitError as error:
                        row.failure = error.message
                done += 1
        on_step("done", count, count)
    except KeyboardInterrupt:
        if not bench.measured():
            raise
        bench.interrupted = True
    return bench


def _bandwidth(device: str) -> float | None:
    """None where it cannot be measured (a machine without a free GB): the rows then have no ceiling."""
    done = subprocess.run(
        [sys.executable, "-c", BANDWIDTH, device], cwd=registry.ROOT, capture_output=True, text=True, check=False
    )
    return float(done.stdout) if done.returncode == 0 else None


def content(bench: Bench, conclusions: list[str]) -> dict[str, Any]:
    """The content of reports/bench-*.json; docs/bench.md describes it."""
    plan = bench.plan
    return {
        "facts": {**facts.gather(), "torch": facts.of_torch(), "llamacpp": facts.of_llamacpp()},
        "model": {**manifest.about(plan.model), "random": plan.model.is_random},
        "request": {"prompt": plan.prompt, "new_tokens": plan.new_tokens, "runs": plan.turns, "seed": 0},
        "runs_done": bench.runs_done,
        "bandwidth": {device: {"bytes_per_s": read, **_spread(read)} for device, read in bench.bandwidth.items()},
        "without_mps": plan.without_mps or None,
        "rows": [_row(bench, row) for row in bench.rows],
        "quality": bench.quality,
        "conclusions": conclusions,
    }


def _row(bench: Bench, row: Row) -> dict[str, Any]:
    return {
        **asdict(row.combination),
        "ceiling_tokens_per_s": bench.ceiling(row),
        "ceiling_share": bench.share(row),
        "summary": {name: _spread(values) for name in NAMES if (values := row.values(name))},
        "runs": [asdict(run) for run in row.runs],
        "failure": row.failure,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return asdict(spread.of(values))


def as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False)
