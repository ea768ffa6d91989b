"""This machine: what it is, as far as it decides where a model can run.

Standard library only, and parsed by Python 3.8: the doctor reads it before there is an environment.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

OLDEST_MACOS = 14  # torch's macOS wheels are tagged macosx_14_0
MADV_DONTNEED = 4  # <asm-generic/mman-common.h>


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
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return total


def release_free_memory() -> None:
    """Gives back what malloc holds of memory that is free again: 20 MB after the starter's tokenizer is built.

    glibc only; macOS's malloc does it by itself.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def release_code() -> None:
    """Gives back the pages of libraries' machine code that only their import ran.

    60 MB of torch, and twice that where the files were just written: they lie in larger pieces in Linux's page cache
    then, and count whole. What runs again is mapped again from there. Code alone, which no program writes to: data of
    a library may have been changed in memory, and madvise(2)'s MADV_DONTNEED would lose that. Linux only.
    """
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, mode, _offset, _device, _inode, *path = line.split(None, 5)
        if mode == "r-xp" and path and ".so" in path[0]:
            start, end = (int(address, 16) for address in addresses.split("-"))
            advise(start, end - start, MADV_DONTNEED)


def peak_rss_bytes() -> int:
    """The most resident memory that this process has held so far, in bytes.

    On Linux from VmHWM: ru_maxrss there also counts the parent's memory from before exec.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): bytes on macOS, KiB on Linux
