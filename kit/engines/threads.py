"""How the threads of torch and llama.cpp wait for each other: looking, or asleep. The one policy, for both.

A new token is hundreds of short pieces of work on all threads, each as long as its slowest. A thread that looks has the
next piece at once; to wake one that sleeps takes as long as a piece. But where others need the processors, one that
looks keeps from its processor the very thread that it waits for: beside two busy programs on two cores a tenth of the
speed is left (docs/measurements.md, "A busy machine").

- torch, Linux (libgomp): threads look, and sleep while others need what they run on, as a watch sees in /proc/stat.
  libgomp reads its setting once, as it is loaded, but all but stops looking by itself while a process has more OpenMP
  threads than processors: the watch adds some that sleep, and takes them away again. What is computed stays the same.
- llama.cpp, Linux (the same libgomp): threads look for some 20 µs, then sleep. A run of it may be over before a watch
  has seen anything, and its pieces are fewer and longer.
- macOS (libomp): sleep after 1 ms in place of 200. No watch; not measured on a Mac.

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


_waiting: Waiting | None = None  # the last decision


# What decides about threads and kernels in torch and llama.cpp: the user's word, which passes and is recorded.
FAMILIES = ("OMP_", "GOMP_", "KMP_", "MKL_", "ATEN_", "DNNL_", "ONEDNN_", "OPENBLAS_", "RAYON_")


def facts() -> dict[str, Any] | None:
    """The last decision; None before there is one."""
    return asdict(_waiting) if _waiting else None


def record() -> dict[str, Any]:
    """For the record of a run: how threads wait (None before that is decided), and what the environment says of threads
    and kernels, but for what is set here."""
    own = {"KMP_BLOCKTIME": BLOCKTIME} if sys.platform == "darwin" else {}
    named = {name: value for name, value in sorted(os.environ.items()) if name.startswith(FAMILIES)}
    settings = {name: value for name, value in named.items() if own.get(name) != value}
    return {"waiting": _waiting.how if _waiting else None, "settings": settings}


def set_by_user() -> Waiting | None:
    """The user's own choice, None where there is none."""
    names = [name for name in SETTINGS if name in os.environ]
    return Waiting("set", ", ".join(f"{name}={os.environ[name]}" for name in names)) if names else None


def before_torch() -> Waiting:
    """To be called before torch is imported; again does no harm."""
    global _waiting
    _waiting = _waiting or set_by_user()
    if _waiting is None:
        if sys.platform == "darwin":
            os.environ["KMP_BLOCKTIME"] = BLOCKTIME  # libomp reads it at its first use, and no later
            _waiting = Waiting("briefly", f"KMP_BLOCKTIME={BLOCKTIME}, in place of 200 ms")
        elif os.environ.get("OMP_NUM_THREADS") == "1":
            _waiting = Waiting("looking", "one thread waits for nobody")
        else:
            _waiting = Waiting("looking", "nothing seen yet of what others use")
            threading.Thread(target=_watch, name="kit-watch", daemon=True).start()
    return _waiting


@contextmanager
def loading_llamacpp() -> Iterator[Waiting]:
    """Within this, llama.cpp's libraries are loaded.

    libgomp reads its setting as it is loaded. Behind that the setting goes again: a program started from here decides
    for itself, and would take it for the user's.
    """
    global _waiting
    chosen = set_by_user()
    if chosen is None:
        name, value = ("KMP_BLOCKTIME", BLOCKTIME) if sys.platform == "darwin" else ("GOMP_SPINCOUNT", SPIN)
        os.environ[name] = value
        chosen = Waiting("briefly", f"{name}={value}")
    _waiting = _waiting or chosen  # torch's libgomp, where it is loaded already, is the one that both use
    try:
        yield chosen
    finally:
        if chosen.how != "set" and sys.platform != "darwin":
            del os.environ["GOMP_SPINCOUNT"]


def decide(others: float, processors: int, threads: int) -> Waiting:
    """How `threads` wait on `processors` of which others use so many: 1.0 is one processor all the time."""
    how = "asleep" if threads > 1 and others > processors - threads + SHARE else "looking"
    return Waiting(how, f"others use {others:.1f} of {processors} processors")


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
    global _waiting
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
            chosen = decide(others, len(processors), count_threads())
            asleep = chosen.how == "asleep"
            quiet = 0 if asleep else quiet + 1
            if asleep and crowd is None:
                crowd = _crowd(max(2, len(processors) - count_threads() + 2))
            elif crowd and quiet >= QUIET_LOOKS:
                crowd()
                crowd = None
            if (crowd is not None) == asleep:
                _waiting = chosen
    except (OSError, ValueError, IndexError) as error:  # a sandbox without /proc/stat
        _waiting = Waiting("looking", f"what others use cannot be seen: {error}")


def _crowd(count: int) -> Callable[[], None] | None:
    """A team of `count` OpenMP threads that has nothing to do, and what ends it; None where there is no libgomp yet.

    GOMP_parallel is what compilers call for `#pragma omp parallel`. The work of each thread here is free(NULL).
    """
    # torch's wheels bring their own, under a name of their own on some platforms.
    mapped = (line.split(None, 5)[-1] for line in Path("/proc/self/maps").read_text().splitlines())
    path = next((path for path in mapped if Path(path).name.startswith("libgomp")), None)
    if path is None:
        return None
    library, work = ctypes.CDLL(path), ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
    end = threading.Event()

    def stay() -> None:
        library.GOMP_parallel(work, None, ctypes.c_uint(count), ctypes.c_uint(0))
        end.wait()  # a thread's team lives as long as the thread

    threading.Thread(target=stay, name="kit-crowd", daemon=True).start()
    return end.set
