"""Resident memory: how much this process has held, and the tricks that keep that low.

Each says what it gains at the peak, of the starter's; what gained less than a twentieth is gone.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kit.environment.machine import Machine
from kit.errors import Hint, KitError

MADV_DONTNEED = 4  # <asm-generic/mman-common.h>


def release_free_memory() -> None:
    """Gives back what malloc holds of memory that is free again, after the tokenizer is built: 194 MB in place of 211
    through llama.cpp. (Through torch 621 in place of 643: done without.)

    glibc only; macOS's malloc does it by itself.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def release_code() -> None:
    """Gives back the pages of libraries' machine code that only their import ran.

    621 MB in place of 679 through torch, and twice that gain where the files were just written: they lie in larger
    pieces in Linux's page cache then, and count whole. What runs again is mapped again from there. Code alone, which no
    program writes to: data of a library may have been changed in memory, and MADV_DONTNEED of madvise(2) would lose
    that. Linux only.
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


def free_memory(here: Machine) -> int | None:
    """Bytes that are free, or could be; in a container no more than its limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    return min(free, here.memory) if here.container and here.memory else free


def require_free(what: str, needed: int, here: Machine, hint: Hint) -> None:
    """Raises KitError where `what` does not fit, before it is loaded."""
    free = free_memory(here)
    if free is not None and needed > free:
        said = f"{what} needs {needed / 1e9:.2f} GB of memory, and {free / 1e9:.2f} GB are free."
        raise KitError(said, *hint)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, in a library's words."""
    return isinstance(error, MemoryError) or any(word in str(error) for word in ("out of memory", "can't allocate"))


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


@contextmanager
def read_tensor_by_tensor() -> Iterator[None]:
    """Within this, transformers reads checkpoints, as it does for MPS by itself, in place of mapping them.

    The pages of a mapped file stay beside the copies in another number format that are made of them: 912 MB in
    place of 1161 in float32. Transformers chooses by platform and device, and has no setting for it.
    """
    from transformers import modeling_utils

    name = "safe_open"
    mapping = getattr(modeling_utils, name)
    setattr(modeling_utils, name, lambda *path, **options: mapping(*path, **{**options, "backend": "pread"}))
    try:
        yield
    finally:
        setattr(modeling_utils, name, mapping)
