"""How many threads a model runs on: one for each performance core that this process may use.

A matrix product ends when its slowest part does, so an efficiency core or the second thread of a core holds the others
up. (torch counts its own; this is what llama.cpp is told.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kit import machine

SYS = Path("/sys")


@dataclass(frozen=True)
class Cores:
    """`count` of threads, and what it was counted from."""

    count: int
    reason: str


def performance() -> Cores:
    """The performance cores; fewer where OMP_NUM_THREADS says so, as for torch.

    macOS: the kernel's hw.perflevel0.physicalcpu. Linux: of the processors in this process's affinity mask, those of
    the fastest kind (Intel's list of P-cores, or the highest cpu_capacity of ARM's), a core's threads counted once, and
    no more than the control group's quota.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return Cores(int(asked), "OMP_NUM_THREADS")
    if sys.platform == "darwin":
        for name in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
            if (said := machine.sysctl(name)).isdigit():
                return Cores(int(said), name)
        return Cores(os.cpu_count() or 1, "all processors")
    return of_linux(os.sched_getaffinity(0), SYS)


def of_linux(allowed: set[int], sys_folder: Path) -> Cores:
    """The count for the processors `allowed`, from what the kernel says below `sys_folder`."""
    fast, reason = _fastest(allowed, sys_folder)
    cores = {_read(_of(sys_folder, cpu) / "topology" / "thread_siblings_list") or str(cpu) for cpu in fast}
    count = len(cores)
    if count < len(fast):
        reason += ", a core's threads counted once"
    quota = _quota(sys_folder / "fs" / "cgroup")
    if quota and quota < count:
        return Cores(max(1, int(quota)), f"the control group's quota of {quota:g}")
    return Cores(count, reason)


def _fastest(allowed: set[int], sys_folder: Path) -> tuple[set[int], str]:
    listed = _parse(_read(sys_folder / "devices" / "cpu_core" / "cpus"))
    if listed & allowed:
        return listed & allowed, "performance cores"
    capacities = {cpu: int(_read(_of(sys_folder, cpu) / "cpu_capacity") or 0) for cpu in allowed}
    best = max(capacities.values())
    fast = {cpu for cpu in allowed if capacities[cpu] == best}
    return fast, "performance cores" if len(fast) < len(allowed) else "all cores"


def _of(sys_folder: Path, cpu: int) -> Path:
    return sys_folder / "devices" / "system" / "cpu" / f"cpu{cpu}"


def _parse(text: str) -> set[int]:
    """`0-3,8` -> {0, 1, 2, 3, 8}"""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _quota(cgroup: Path) -> float | None:
    """Processors' worth of time that the control group grants; None for no limit."""
    second: Iterable[str] = _read(cgroup / "cpu.max").split()
    first = [_read(cgroup / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    quota, period = [*second, *first, "", ""][:2]
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
