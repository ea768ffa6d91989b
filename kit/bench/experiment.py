"""The headline experiment: every combination of a plan, turn by turn, and what the hardware would allow.

One after the other within a turn, so that what slows the machine for a while slows all alike; the order turns round
from turn to turn, so that none always follows the same one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from kit import paths
from kit.bench import stats
from kit.bench.plan import Combination, Plan
from kit.engines import methods
from kit.environment import facts
from kit.errors import KitError

if TYPE_CHECKING:
    import psutil


# Seconds between two looks at the memory of the processes. A look takes 1 ms of one core, and at 50 looks a second
# llama.cpp, whose threads wait for each other, decodes a tenth slower.
LOOK = 0.25
# What would decide about a run besides what the bench asks for.
FOREIGN = tuple(
    "PROMPT PROMPT_FILE FROM RECORD JSON MODEL DEVICE METHOD DTYPE QUANT MAX_NEW_TOKENS TEMPERATURE SEED".split()
)
# One after the other, they are the whole process: `rest_s` is Python's own start, and its end.
PHASES = ("rest_s", "import_s", "load_s", "first_token_s", "decode_s")


@dataclass(frozen=True)
class Run:
    """Seconds, bytes, and tokens per second. `process_s` is from the start of the process to its end.

    `peak_rss_bytes` is resident memory of the process and all that it started, shared pages counted in each.
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


def run_once(command: list[str], plan: Plan, combination: Combination) -> Run:
    """Runs `command` (the verb `run`) as the combination says. Raises KitError where it fails, or ran otherwise."""
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    environment["KIT_DOTENV"] = os.devnull  # what counts of .env is in the environment by now
    options = ["--json", "--ignore-eos", "--temperature=0", "--seed=0"]
    options += [f"--model={plan.model.name}", f"--method={combination.method}", f"--device={combination.device}"]
    options += [f"--dtype={combination.dtype or 'auto'}", f"--quant={combination.quant or 'auto'}"]
    options += [f"--prompt={plan.prompt}", f"--max-new-tokens={plan.new_tokens}"]
    # Files, not pipes: nothing has to be read while the clock runs.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, *options], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment
        )
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
    return _read(json.loads(said), plan, combination, seconds, peak)


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
            peak = max(peak, _resident(root))


def _resident(root: psutil.Process) -> int:
    import psutil

    total = 0
    try:
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.Error:  # it ended between two looks
        return 0
    return total


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
    before = said["import_s"] + said["load_s"] + said["first_token_s"]
    return Run(
        rest_s=seconds - said["total_s"],
        import_s=said["import_s"],
        load_s=said["load_s"],
        first_token_s=said["first_token_s"],
        decode_s=said["total_s"] - before,
        process_s=seconds,
        decode_tokens_per_s=said["decode_tokens_per_s"],
        # Between two looks it may have been more: the process itself knows its own.
        peak_rss_bytes=max(peak, said["peak_rss_bytes"]),
        device_memory_bytes=said["device_memory_bytes"],
    )


# In a process of its own, so that neither torch nor the tensor stays in memory beside the runs.
BANDWIDTH = "import sys; from kit.bench import roofline; print(roofline.measure(sys.argv[1]))"
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
        return stats.of(read).median / row.combination.bytes_per_token if read else None

    def share(self, row: Row) -> float | None:
        """How much of the ceiling the decoding reached."""
        ceiling = self.ceiling(row)
        return stats.of(row.values("decode_tokens_per_s")).median / ceiling if ceiling and row.runs else None


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
                        measured = run_once(command, plan, row.combination)
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
        [sys.executable, "-c", BANDWIDTH, device], cwd=paths.ROOT, capture_output=True, text=True, check=False
    )
    return float(done.stdout) if done.returncode == 0 else None


def content(bench: Bench, conclusions: list[str]) -> dict[str, Any]:
    """The content of reports/bench-*.json; docs/bench.md describes it."""
    plan = bench.plan
    return {
        "facts": {**facts.gather(), **_of_libraries(plan)},
        "model": {**plan.model.identity(), "random": plan.model.is_random},
        "request": {"prompt": plan.prompt, "new_tokens": plan.new_tokens, "runs": plan.turns, "seed": 0},
        "runs_done": bench.runs_done,
        "bandwidth": {device: {"bytes_per_s": read, **_spread(read)} for device, read in bench.bandwidth.items()},
        "without_mps": plan.without_mps or None,
        "rows": [_row(bench, row) for row in bench.rows],
        "quality": bench.quality,
        "conclusions": conclusions,
    }


def _of_libraries(plan: Plan) -> dict[str, Any]:
    """What each library says of itself that a method runs on."""
    engines = [engine(plan.model, "cpu") for engine in methods.ENGINES.values()]
    return {name: said for engine in engines for name, said in engine.facts().items()}


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
    return asdict(stats.of(values))


def as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False)
