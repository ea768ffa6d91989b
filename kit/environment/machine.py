"""This machine: what it is, as far as it decides where a model can run.

Standard library only, and parsed by Python 3.9: the doctor reads it before there is an environment.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OLDEST_MACOS = 14  # torch's macOS wheels are tagged macosx_14_0


@dataclass(frozen=True)
class Machine:
    """`system` and `arch` are platform's (Darwin, Linux; arm64, x86_64, aarch64), as this Python sees them.

    `macos` is the version ("" elsewhere), `translated` true for an x86_64 Python under Rosetta, `virtual` for a macOS
    in a virtual machine, `container` inside one; `memory` in bytes, None where it cannot be told.
    """

    system: str
    arch: str
    macos: str = ""
    translated: bool = False
    virtual: bool = False
    container: bool = False
    memory: int | None = None

    @property
    def name(self) -> str:
        system = f"macOS {self.macos}" if self.system == "Darwin" else self.system
        return f"{system} {self.arch}"

    def old_macos(self) -> bool:
        """True for a macOS that torch has no wheels for."""
        major = self.macos.split(".")[0]
        return major.isdigit() and int(major) < OLDEST_MACOS


def this() -> Machine:
    """The machine that this Python runs on."""
    system = platform.system()
    darwin = system == "Darwin"
    return Machine(
        system=system,
        arch=platform.machine(),
        macos=platform.mac_ver()[0] if darwin else "",
        translated=darwin and sysctl("sysctl.proc_translated") == "1",
        virtual=darwin and sysctl("kern.hv_vmm_present") == "1",
        container=Path("/.dockerenv").exists() or Path("/run/.containerenv").exists(),
        memory=total_memory(),
    )


def sysctl(name: str) -> str:
    """The value of one of macOS's kernel variables, "" where there is none."""
    try:
        done = subprocess.run(["sysctl", "-n", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    except OSError:
        return ""
    return done.stdout.decode("utf-8", "replace").strip()


def total_memory() -> int | None:
    """Bytes of memory that this process may use: the machine's, or its container's limit where that is lower."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    limits = [_read(group / name) for group in control_groups("memory") for name in MEMORY_LIMITS]
    return min([total, *(int(limit) for limit in limits if limit.isdigit())])


MEMORY_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")


def control_groups(controller: str, own: Path = Path("/proc/self/cgroup"), mounted: Path = CGROUPS) -> list[Path]:
    """The folders of this process's control group and of those above it: each one's limits hold. None but on Linux.

    Version 2 has one tree, version 1 one for each controller (cgroups(7)). In a container the path may be of the host's
    tree, which is not mounted there: the root, which is its own, always counts.
    """
    folders = [mounted, mounted / controller]
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        tree = mounted / controller if controller in controllers.split(",") else None if controllers else mounted
        group = tree and tree / path.strip("/")
        while group and group != tree:
            folders.append(group)
            group = group.parent
    return folders


# --- How many threads a model runs on: one for each performance core --------------------------------------------------


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
            if (said := sysctl(name)).isdigit():
                return Cores(int(said), name)
        return Cores(os.cpu_count() or 1, "all processors")
    return of_linux(os.sched_getaffinity(0), Path("/sys"))


def of_linux(allowed: set[int], sys_folder: Path) -> Cores:
    """The count for the processors `allowed`, from what the kernel says below `sys_folder`."""

    def said(cpu: int, name: str) -> str:
        return _read(sys_folder / "devices" / "system" / "cpu" / f"cpu{cpu}" / name)

    fast, reason = allowed & _parse(_read(sys_folder / "devices" / "cpu_core" / "cpus")), "performance cores"
    if not fast:
        capacities = {cpu: int(said(cpu, "cpu_capacity") or 0) for cpu in allowed}
        fast = {cpu for cpu, capacity in capacities.items() if capacity == max(capacities.values())}
        reason = "performance cores" if len(fast) < len(allowed) else "all cores"
    count = len({said(cpu, "topology/thread_siblings_list") or str(cpu) for cpu in fast})
    if count < len(fast):
        reason += ", a core's threads counted once"
    mounted = sys_folder / "fs" / "cgroup"
    quotas = [_quota(group) for group in control_groups("cpu", mounted=mounted)]
    quota = min((each for each in quotas if each), default=None)
    if quota and quota < count:
        return Cores(max(1, int(quota)), f"the control group's quota of {quota:g}")
    return Cores(count, reason)


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
    first = [_read(cgroup / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    quota, period = [*second, *first, "", ""][:2]
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
