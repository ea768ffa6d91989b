"""What others took of the processors while a run was measured: a figure taken beside them is no figure of the run."""

from __future__ import annotations

import resource
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# From here on a run counts as disturbed. A quiet machine's own services take 0.02 of a processor.
OTHERS = 0.25  # processors' worth of time that other programs took
STOLEN = 0.1  # the same that the hypervisor gave to other machines
THROTTLED = 0.05  # share of the time in which the control group's quota was used up

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Disturbance:
    """Of a span of time: processors' worth of it that others took and that the hypervisor stole, and the share of it in
    which the control group was throttled; None where this system does not say.
    """

    others_processors: float | None
    stolen_processors: float | None
    throttled_share: float | None

    @property
    def reason(self) -> str | None:
        """What makes the span a disturbed one; None for a quiet one, and for one that nothing is known of."""
        limits = (
            (self.others_processors, OTHERS, "other programs took {:.1f} processors"),
            (self.stolen_processors, STOLEN, "the hypervisor took {:.1f} processors"),
            (self.throttled_share, THROTTLED, "the control group was throttled {:.0%} of the time"),
        )
        return next((text.format(seen) for seen, limit, text in limits if seen is not None and seen > limit), None)


@dataclass(frozen=True)
class Reading:
    """The machine's counters at one moment, in seconds; `own` is of this process and its children that have ended."""

    at: float
    own: float
    busy: float
    stolen: float | None
    throttled: float | None

    def until(self, later: Reading) -> Disturbance:
        """What was between the two readings."""
        seconds = later.at - self.at

        def share(a: float | None, b: float | None) -> float | None:
            return None if a is None or b is None else max(0.0, (b - a) / seconds)

        others = max(0.0, (later.busy - self.busy - (later.own - self.own)) / seconds)
        return Disturbance(others, share(self.stolen, later.stolen), share(self.throttled, later.throttled))


def read() -> Reading:
    """The counters now."""
    import psutil

    now = psutil.cpu_times()
    # Linux counts a guest's time in the host's `user` too; `steal` and the interrupts are Linux's alone.
    busy = sum(getattr(now, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = sum(each.ru_utime + each.ru_stime for each in used)
    return Reading(time.monotonic(), own, busy, getattr(now, "steal", None), throttled_seconds(PROC, CGROUPS))


def throttled_seconds(proc: Path, cgroups: Path) -> float | None:
    """How long this process's control group has been throttled so far: cpu.stat of cgroups(7), version 2 or 1."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inside = path.lstrip("/")
        if not controllers:
            places = [cgroups / inside, cgroups]
        elif "cpu" in controllers.split(","):
            places = [cgroups / controllers / inside, cgroups / "cpu" / inside, cgroups / "cpu"]
        else:
            continue
        for place in places:
            with suppress(OSError, ValueError):
                said = dict(row.split() for row in (place / "cpu.stat").read_text().splitlines())
                for name, a_second in (("throttled_usec", 1e6), ("throttled_time", 1e9)):
                    if name in said:
                        return int(said[name]) / a_second
    return None
