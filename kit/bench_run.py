"""One run of a bench, in a process of its own: imports from cold, and memory that nothing else has touched."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kit.bench_plan import Combination, Plan
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


def run(command: list[str], plan: Plan, combination: Combination) -> Run:
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
