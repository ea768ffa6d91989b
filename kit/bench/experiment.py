"""The headline experiment: every combination of a plan, turn by turn, and what the hardware would allow.

One after the other within a turn, so that what slows the machine for a while slows all alike; the order turns round
from turn to turn, so that none always follows the same one.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

from kit import paths, settings
from kit.bench import disturbance, stats
from kit.bench.disturbance import Disturbance
from kit.bench.plan import Combination, Plan
from kit.engines import methods
from kit.environment import facts
from kit.errors import KitError
from kit.files import Progress, silent

# Seconds between two looks at the memory of the processes. A look takes 1 ms of one core, and at 50 looks a second
# llama.cpp, whose threads wait for each other, decodes a tenth slower.
LOOK = 0.25
# What would decide about a run besides what the bench asks for.
FOREIGN = ("KIT_TYPED", *(variable.name for variable in settings.taken_by("run")))


@dataclass(frozen=True)
class Run:
    """Seconds, bytes, and tokens per second. `process_s` is from the start of the process to its end, and the five
    before it are all of it, one after the other: `rest_s` is Python's own start, and its end.

    `peak_rss_bytes` is resident memory of the process and all that it started, shared pages counted in each. The last
    three are what others took of the processors meanwhile (kit/bench/disturbance.py).
    """

    rest_s: float
    import_s: float
    load_s: float
    first_token_s: float
    decode_s: float
    process_s: float
    decode_tokens_per_s: float
    peak_rss_bytes: int
    device_memory_bytes: int | None
    others_processors: float | None = None
    stolen_processors: float | None = None
    throttled_share: float | None = None

    @property
    def disturbed(self) -> str | None:
        """What disturbed it; None where nothing is known to have."""
        return Disturbance(self.others_processors, self.stolen_processors, self.throttled_share).reason


def run_once(command: list[str], plan: Plan, combination: Combination) -> Run:
    """Runs `command` (the verb `run`) as the combination says. Raises KitError where it fails, or ran otherwise."""
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    environment["KIT_DOTENV"] = os.devnull  # what counts of .env is in the environment by now
    options = ["--json", "--ignore-eos", "--temperature=0", "--seed=0"]
    options += [f"--model={plan.model.name}", f"--method={combination.method}", f"--device={combination.device}"]
    options += [f"--dtype={combination.dtype or 'auto'}", f"--quant={combination.quant or 'auto'}"]
    options += [f"--prompt={plan.prompt}", f"--max-new-tokens={plan.new_tokens}"]
    command = [*command, *options]
    # Files, not pipes: nothing has to be read while the clock runs.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        before, start = disturbance.read(), time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)
        try:
            peak = _watch(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - start
        said, messages = (_text(file) for file in (out, err))
    if process.returncode:
        raise KitError(_last_error(messages, process.returncode))
    meanwhile = before.until(disturbance.read())
    return replace(_read(json.loads(said), plan, combination, seconds, peak), **asdict(meanwhile))


def _watch(process: subprocess.Popen[bytes]) -> int:
    """Waits for the end; the most memory that the process and its descendants held at one look, in bytes."""
    import psutil

    peak = 0
    root = psutil.Process(process.pid)
    while True:
        try:
            process.wait(LOOK)
            return peak
        except subprocess.TimeoutExpired:
            with suppress(psutil.Error):  # it ended between two looks
                held = [each.memory_info().rss for each in (root, *root.children(recursive=True))]
                peak = max(peak, sum(held))


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode("utf-8", "replace"))


def _last_error(messages: str, status: int) -> str:
    lines = messages.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if starts:
        return lines[starts[-1]].removeprefix("error: ")
    if status in (-9, 137):
        return "it was killed, most likely because it needed more memory than there is"
    return f"exit status {status}, {lines[-1] if lines else 'without a word'}"


def _read(said: dict[str, Any], plan: Plan, combination: Combination, seconds: float, peak: int) -> Run:
    ran = Combination(said["method"], said["device"], said["dtype"], said["quant"], combination.bytes_per_token)
    if ran != combination or said["new_tokens"] != plan.new_tokens:
        raise KitError(f"{combination} was asked for, and {ran} ran, for {said['new_tokens']} tokens.")
    kept = ("import_s", "load_s", "first_token_s", "decode_tokens_per_s", "device_memory_bytes")
    return Run(
        rest_s=seconds - said["total_s"],
        decode_s=said["total_s"] - said["import_s"] - said["load_s"] - said["first_token_s"],
        process_s=seconds,
        # Between two looks it may have been more: the process itself knows its own.
        peak_rss_bytes=max(peak, said["peak_rss_bytes"]),
        **{name: said[name] for name in kept},
    )


# In a process of its own, so that neither torch nor the tensor stays in memory beside the runs.
BANDWIDTH = "import sys; from kit.bench import roofline; print(roofline.measure(sys.argv[1]))"
# What is measured of a run, and summed up for a row.
NAMES = tuple(column.name for column in fields(Run) if column.default is MISSING)
# How many turns are run again, in all, where others took the processors.
REPEATS = 3


@dataclass(eq=False)
class Row:
    """A combination and its runs so far, one a turn; `failure` is why there are no more.

    `left_out` are the turns that were disturbed, for whichever row.
    """

    combination: Combination
    runs: list[Run] = field(default_factory=list)
    failure: str | None = None
    left_out: frozenset[int] = frozenset()

    @property
    def counting(self) -> list[Run]:
        """The runs of undisturbed turns; where there is none, all."""
        return [run for turn, run in enumerate(self.runs) if turn not in self.left_out] or self.runs

    @property
    def disturbed(self) -> bool:
        """True where its figures are of disturbed turns, for want of others."""
        return bool(self.runs) and len(self.left_out) >= len(self.runs)

    def values(self, name: str) -> list[float]:
        """One measurement of each run that counts and has it."""
        return [value for run in self.counting if (value := getattr(run, name)) is not None]


@dataclass
class Bench:
    """What came of a plan: a row a combination, and bytes per second that each device read, one figure a turn."""

    plan: Plan
    rows: list[Row]
    bandwidth: dict[str, list[float]]
    quality: list[dict[str, Any]] | None = None
    interrupted: bool = False
    repeated: int = 0

    @property
    def disturbances(self) -> list[str]:
        """What disturbed each turn that was, as far as it is among the runs."""
        turns = itertools.zip_longest(*(row.runs for row in self.rows))
        return [why for turn in turns if (why := next((run.disturbed for run in turn if run and run.disturbed), None))]

    def measured(self) -> list[Row]:
        return [row for row in self.rows if row.runs]

    @property
    def runs_done(self) -> int:
        """How many runs each row has, but for those that failed: as many as asked for, or fewer after Ctrl-C."""
        return min((len(row.runs) for row in self.rows if not row.failure), default=0)

    def ceiling(self, row: Row) -> float | None:
        """Tokens per second that reading the weights allows; None where the bandwidth is not known."""
        read = self.bandwidth.get(row.combination.device)
        return stats.of(read).median / row.combination.bytes_per_token if read else None

    def share(self, row: Row) -> float | None:
        """How much of the ceiling the decoding reached."""
        ceiling = self.ceiling(row)
        return stats.of(row.values("decode_tokens_per_s")).median / ceiling if ceiling and row.runs else None


def run(plan: Plan, command: list[str], on_step: Progress = silent) -> Bench:
    """Runs the plan; `command` is the verb `run`. A combination that fails is left out of the turns that follow.

    A turn in which others took the processors is run again, up to REPEATS times in all; what is still missing then
    comes from the disturbed ones. Ctrl-C ends it early, and what was measured until then counts.
    """
    bench = Bench(plan, [Row(combination) for combination in plan.combinations], {})
    turns: list[_Turn] = []
    steps = len(bench.rows) + len(_devices(plan))
    show = partial(on_step, total=(plan.turns + 1) * steps)
    try:
        _one_turn(bench, command, "warm-up", 0, show, backwards=True)
        while len(turns) < plan.turns + bench.repeated:
            number = len(turns) - bench.repeated + 1
            again = f", once more: {turns[-1].disturbed}" if turns and turns[-1].disturbed else ""
            name = f"turn {number} of {plan.turns}{again}"
            turns.append(_one_turn(bench, command, name, number * steps, show, backwards=bool(len(turns) % 2)))
            bench.repeated += bool(turns[-1].disturbed) and bench.repeated < REPEATS
        show("done", (plan.turns + 1) * steps)
    except KeyboardInterrupt:
        bench.interrupted = True
    _keep(bench, turns)
    if bench.interrupted and not bench.measured():
        raise KeyboardInterrupt
    return bench


@dataclass(frozen=True)
class _Turn:
    """One run of each row that did not fail, by its place, and bytes per second by device."""

    runs: dict[int, Run]
    bandwidth: dict[str, float]

    @property
    def disturbed(self) -> str | None:
        return next((run.disturbed for run in self.runs.values() if run.disturbed), None)


def _devices(plan: Plan) -> list[str]:
    return list(dict.fromkeys(combination.device for combination in plan.combinations))


def _one_turn(bench: Bench, command: list[str], name: str, start: int, on_step: Progress, backwards: bool) -> _Turn:
    turn, done = _Turn({}, {}), itertools.count(start)
    for device in _devices(bench.plan):
        on_step(f"{name}: {device}'s bandwidth", next(done))
        if read := _bandwidth(device):
            turn.bandwidth[device] = read
    places = list(enumerate(bench.rows))
    for place, row in places[::-1] if backwards else places:
        on_step(f"{name}: {row.combination}", next(done))
        if row.failure is None:
            try:
                turn.runs[place] = run_once(command, bench.plan, row.combination)
            except KitError as error:
                row.failure = error.message
    return turn


def _keep(bench: Bench, turns: list[_Turn]) -> None:
    """As many turns as were asked for, the undisturbed ones first to be taken, in the order in which they passed."""
    chosen = sorted(range(len(turns)), key=lambda number: (bool(turns[number].disturbed), number))[: bench.plan.turns]
    kept = [turns[number] for number in sorted(chosen)]
    left_out = frozenset(number for number, turn in enumerate(kept) if turn.disturbed)
    for place, row in enumerate(bench.rows):
        row.runs = [turn.runs[place] for turn in kept if place in turn.runs]
        row.left_out = left_out
    for device in _devices(bench.plan):
        if read := [turn.bandwidth[device] for turn in kept if device in turn.bandwidth]:
            bench.bandwidth[device] = read


def _bandwidth(device: str) -> float | None:
    """None where it cannot be measured (a machine without a free GB): the rows then have no ceiling."""
    command = [sys.executable, "-c", BANDWIDTH, device]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else None


def content(bench: Bench, conclusions: list[str]) -> dict[str, Any]:
    """The content of reports/bench-*.json; docs/bench.md describes it."""
    plan, machine_and_libraries = bench.plan, facts.gather()
    for name in dict.fromkeys(each.method for each in plan.combinations):  # another one may not run this model
        machine_and_libraries |= methods.of(name)(plan.model, "cpu").facts()
    return {
        "facts": machine_and_libraries,
        "model": {**plan.model.identity(), "random": plan.model.is_random},
        "request": {"prompt": plan.prompt, "new_tokens": plan.new_tokens, "runs": plan.turns, "seed": 0},
        "runs_done": bench.runs_done,
        "turns_repeated": bench.repeated,
        "disturbances": bench.disturbances,
        "bandwidth": {name: {"bytes_per_s": read, **asdict(stats.of(read))} for name, read in bench.bandwidth.items()},
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
        "summary": {name: asdict(stats.of(values)) for name in NAMES if (values := row.values(name))},
        "disturbed": row.disturbed,
        "runs": [{**asdict(run), "disturbed": run.disturbed} for run in row.runs],
        "failure": row.failure,
    }


def as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False)
