"""How fast runs are beside busy programs: variants of the kit in turns, in pairs that nothing else has disturbed.

    git worktree add /tmp/before COMMIT && ln -s "$PWD/.venv" "$PWD/models" /tmp/before
    .venv/bin/python -m tests.measure_busy /tmp/busy.jsonl before=/tmp/before after=.
    .venv/bin/python -m tests.measure_busy /tmp/curve.jsonl libgomp=. 1000=.,GOMP_SPINCOUNT=1000 …

Each variant is a folder and what is set there. A turn is one run of each, in the reverse order every other time, beside
BUSY (0, 1 or 2) programs, which it starts and ends. A turn waits until the machine is quiet, and counts where the
programs of nobody else took more than FOREIGN of a processor. The file keeps all turns, and another call goes on there.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

METHODS = {
    "manual": {"METHOD": "manual"},
    "pipeline": {"METHOD": "pipeline"},
    "q4_1": {"METHOD": "llamacpp"},
    "bf16": {"METHOD": "llamacpp", "QUANT": "bf16"},
}
BUSY = "while True: pass"
FOREIGN = 0.15  # processors
TICKS = os.sysconf("SC_CLK_TCK")


def worked() -> float:
    """Seconds that all processors have worked."""
    columns = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return sum(columns[place] for place in (0, 1, 2, 5, 6)) / TICKS


def worked_here(programs: list[subprocess.Popen[bytes]]) -> float:
    """Seconds of them that this process, what it has waited for, and the busy programs have had."""
    seconds = sum(os.times()[:4])
    for program in programs:
        words = Path(f"/proc/{program.pid}/stat").read_text().rsplit(")", 1)[1].split()
        seconds += (int(words[11]) + int(words[12])) / TICKS
    return seconds


class Foreign:
    """How many processors' worth of time others have had since the start."""

    def __init__(self, programs: list[subprocess.Popen[bytes]]) -> None:
        self._programs = programs
        self._start = time.monotonic(), worked() - worked_here(programs)

    def share(self) -> float:
        then, before = self._start
        return (worked() - worked_here(self._programs) - before) / (time.monotonic() - then)


def run(folder: str, variables: dict[str, str]) -> dict[str, Any]:
    dropped = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.run"],
        cwd=folder,
        env=kept | variables | {"JSON": "1"},
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout)


def turn(variants: dict[str, str], method: str, busy: int, number: int) -> dict[str, Any]:
    """One run of each variant. `undisturbed` says whether it counts."""
    said: dict[str, Any] = {"busy": busy, "method": method, "turn": number, "undisturbed": True, "runs": {}}
    said["load"] = Path("/proc/loadavg").read_text().split()[0]
    programs = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    try:
        time.sleep(0.5)
        for name in list(variants) if number % 2 == 0 else list(variants)[::-1]:
            folder, *settings = variants[name].split(",")
            foreign = Foreign(programs)
            answer = run(folder, METHODS[method] | dict(setting.split("=", 1) for setting in settings))
            share = round(foreign.share(), 3)
            said["runs"][name] = {
                "tokens_per_s": answer["decode_tokens_per_s"],
                "total_s": answer["total_s"],
                "token_ids": answer["token_ids"],
                "foreign": share,
            }
            if share > FOREIGN:
                said["undisturbed"] = False
                break
    finally:
        for program in programs:
            program.kill()
            program.wait()
    return said


def wait_for_quiet(until: float) -> bool:
    while time.time() < until:
        foreign = Foreign([])
        time.sleep(1.5)
        if foreign.share() < FOREIGN / 2:
            return True
    return False


def show(turns: list[dict[str, Any]], variants: list[str]) -> None:
    counted = [one for one in turns if one["undisturbed"]]
    print(f"{len(turns) - len(counted)} turns were disturbed and do not count")
    for busy, method in sorted({(one["busy"], one["method"]) for one in counted}):
        of = [one["runs"] for one in counted if (one["busy"], one["method"]) == (busy, method)]
        rates = {name: [runs[name]["tokens_per_s"] for runs in of if name in runs] for name in variants}
        cells = [
            f"{name} {statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})"
            for name, found in rates.items()
            if found
        ]
        same = len({tuple(one["token_ids"]) for runs in of for one in runs.values()}) == 1
        first, last = rates[variants[0]], rates[variants[-1]]
        ratio = statistics.median(last) / statistics.median(first)
        print(f"{method}, {busy} busy, {len(of)} turns: {', '.join(cells)}; {ratio:.2f}; the same tokens: {same}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("variants", nargs="+", metavar="NAME=FOLDER[,VARIABLE=VALUE…]")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--busy", default="0,1,2")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3600, help="no turn starts later")
    parser.add_argument("--lock", type=Path, help="a file that whoever measures here locks")
    asked = parser.parse_args()
    variants = dict(word.split("=", 1) for word in asked.variants)
    lines = asked.file.read_text().splitlines() if asked.file.exists() else []
    turns = [json.loads(line) for line in lines]
    until = time.time() + asked.seconds
    wanted = [
        (number, int(busy), method)
        for number in range(asked.turns)
        for busy in asked.busy.split(",")
        for method in asked.methods.split(",")
    ]
    for number, busy, method in wanted:
        while not any(
            one["undisturbed"] and (one["turn"], one["busy"], one["method"]) == (number, busy, method) for one in turns
        ):
            if not wait_for_quiet(until):
                break
            with (asked.lock or asked.file).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH if asked.lock else fcntl.LOCK_EX)
                turns.append(turn(variants, method, busy, number))
            with asked.file.open("a") as file:
                file.write(json.dumps(turns[-1]) + "\n")
    show(turns, list(variants))


if __name__ == "__main__":
    main()
