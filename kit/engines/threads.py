"""How the threads of torch and llama.cpp wait for each other: looking, or asleep. The one policy, for both.

One new token is hundreds of short pieces of work on all threads, each as long as its slowest. A thread that looks for
the next piece has it at once, and one that sleeps must be woken, which takes as long as a piece. But where other
programs need the processors, a thread that looks keeps the very thread from its processor that it waits for: beside two
busy programs on two cores a tenth of the speed is left (docs/measurements.md, "A busy machine").

- torch, Linux (libgomp): threads look, as libgomp does by itself, while each has a processor to itself. A watch sees
  in /proc/stat, from before the import until the end, what others use, and lets threads sleep for as long as these
  need what the threads run on. How long libgomp looks is read once, when it is loaded; but it all but stops looking by
  itself while a process has more OpenMP threads than processors. So the watch adds some that sleep, and takes them
  away again. What is computed by which thread stays the same, and so does every bit.
- llama.cpp, Linux (the same libgomp): its threads look for some 20 µs and sleep then. A run of it may be over before a
  watch has seen anything, and it has fewer and longer pieces.
- macOS (libomp): sleep after 1 ms in place of 200. There is no such watch, and it was not measured on a Mac.

What the user has set counts before all of this. Imports nothing of the kit, as kit/engines/imports.py.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Whoever has set one of these has decided how threads wait.
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
SPIN = "1000"  # looks of llama.cpp's threads before they sleep
BLOCKTIME = "1"  # milliseconds
LOOK = 0.5  # seconds between two looks at the processors
# Processors' worth of time that others may use of those that the threads run on.
SHARE = 0.3
# So many looks in a row must be quiet before threads look again: a browser works in bursts.
QUIET_LOOKS = 2
BUSY_COLUMNS = (0, 1, 2, 5, 6)  # of /proc/stat: user, nice, system, irq, softirq


@dataclass(frozen=True)
class Waiting:
    """`how` is looking, asleep, briefly (looking, then asleep) or set (by the user), and `reason` is why."""

    how: str
    reason: str


@dataclass
class _State:
    waiting: Waiting | None = None
    watch: threading.Thread | None = None


_state = _State()


def facts() -> dict[str, Any] | None:
    """The last decision, for the record of a run; None before there is one."""
    return asdict(_state.waiting) if _state.waiting else None


def set_by_user() -> Waiting | None:
    """The user's own choice, None where there is none."""
    names = [name for name in SETTINGS if name in os.environ]
    return Waiting("set", ", ".join(f"{name}={os.environ[name]}" for name in names)) if names else None


def before_torch() -> Waiting:
    """To be called before torch is imported; again does no harm."""
    if _state.waiting:
        return _state.waiting
    _state.waiting = set_by_user()
    if _state.waiting is None:
        if sys.platform == "darwin":
            os.environ["KMP_BLOCKTIME"] = BLOCKTIME  # libomp reads it at its first use, and no later
            _state.waiting = Waiting("briefly", f"KMP_BLOCKTIME={BLOCKTIME}, in place of 200 ms")
        elif os.environ.get("OMP_NUM_THREADS") == "1":
            _state.waiting = Waiting("looking", "one thread waits for nobody")
        else:
            _state.waiting = Waiting("looking", "nothing seen yet of what others use")
            _state.watch = threading.Thread(target=_watch, name="kit-watch", daemon=True)
            _state.watch.start()
    return _state.waiting


@contextmanager
def loading_llamacpp() -> Iterator[Waiting]:
    """Within this, llama.cpp's libraries are loaded.

    libgomp reads its setting as it is loaded. Behind that the setting goes again: a program started from here decides
    for itself, and would take it for the user's.
    """
    chosen = set_by_user()
    if chosen is None:
        name, value = ("KMP_BLOCKTIME", BLOCKTIME) if sys.platform == "darwin" else ("GOMP_SPINCOUNT", SPIN)
        os.environ[name] = value
        chosen = Waiting("briefly", f"{name}={value}")
    _state.waiting = _state.waiting or chosen  # torch's libgomp, where it is loaded already, is the one that both use
    try:
        yield chosen
    finally:
        if chosen.how != "set" and sys.platform != "darwin":
            del os.environ["GOMP_SPINCOUNT"]


def decide(others: float, processors: int, threads: int) -> Waiting:
    """How `threads` wait on `processors` of which others use so many: 1.0 is one processor all the time."""
    seen = f"others use {others:.1f} of {processors} processors"
    if threads > 1 and others > processors - threads + SHARE:
        return Waiting("asleep", seen)
    return Waiting("looking", seen)


# --- The watch --------------------------------------------------------------------------------------------------------


def busy_seconds(stat: str, processors: set[int]) -> float:
    """Seconds that `processors` have worked since the machine's start, by the text of /proc/stat."""
    names = {f"cpu{number}" for number in processors}
    rows = [line.split() for line in stat.splitlines() if line.startswith("cpu")]
    ticks = sum(int(row[1 + column]) for row in rows if row[0] in names for column in BUSY_COLUMNS)
    return ticks / os.sysconf("SC_CLK_TCK")


def _look(processors: set[int]) -> tuple[float, float]:
    """The clock, and the seconds that others have worked on `processors`. Raises OSError, ValueError, IndexError."""
    return time.monotonic(), busy_seconds(Path("/proc/stat").read_text(), processors) - time.process_time()


def _watch() -> None:
    processors = os.sched_getaffinity(0)
    crowd: Callable[[], None] | None = None
    quiet = 0
    try:
        then, before = _look(processors)
        while True:
            time.sleep(LOOK)
            now, after = _look(processors)
            others, then, before = max(0.0, after - before) / (now - then), now, after
            count_threads = getattr(sys.modules.get("torch"), "get_num_threads", None)
            if count_threads is None:  # it is not imported yet
                continue
            threads = count_threads()
            chosen = decide(others, len(processors), threads)
            quiet = 0 if chosen.how == "asleep" else quiet + 1
            if chosen.how == "asleep" and crowd is None:
                crowd = _crowd(max(2, len(processors) - threads + 2))
            elif crowd and quiet >= QUIET_LOOKS:
                crowd()
                crowd = None
            if (crowd is not None) == (chosen.how == "asleep"):
                _state.waiting = chosen
    except (OSError, ValueError, IndexError) as error:  # a sandbox without /proc/stat
        _state.waiting = Waiting("looking", f"what others use cannot be seen: {error}")


def _crowd(count: int) -> Callable[[], None] | None:
    """A team of `count` OpenMP threads that has nothing to do, and what ends it; None where there is no libgomp yet.

    GOMP_parallel is what compilers call for `#pragma omp parallel`. The work of each thread here is free(NULL).
    """
    path = _libgomp()
    if path is None:
        return None
    library, work = ctypes.CDLL(path), ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
    end = threading.Event()

    def stay() -> None:
        library.GOMP_parallel(work, None, ctypes.c_uint(count), ctypes.c_uint(0))
        end.wait()  # a thread's team lives as long as the thread

    threading.Thread(target=stay, name="kit-crowd", daemon=True).start()
    return end.set


def _libgomp() -> str | None:
    """The libgomp that is loaded: torch's wheels bring their own, under a name of their own on some platforms."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(None, 5)[-1]
        if Path(path).name.startswith("libgomp"):
            return path
    return None
