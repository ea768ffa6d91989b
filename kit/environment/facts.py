"""What a result depends on: the kit, its lock, every package, Python, the machine. No user, host, path or token."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from kit.environment import machine
from kit.environment.lock import normal
from kit.paths import ROOT

UNKNOWN = "unknown"  # a commit that nothing here tells
# What changes how the libraries compute.
DECIDING = ["ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA"]
DECIDING += ["PYTORCH_ENABLE_MPS_FALLBACK", "PYTORCH_MPS_HIGH_WATERMARK_RATIO", "PYTORCH_MPS_FAST_MATH"]


def gather() -> dict[str, Any]:
    """All of it, as JSON takes it. Memory in bytes."""
    here = machine.this()
    return {
        "kit": {"commit": commit(), "lock": lock_name(), "lock_sha256": lock_sha256()},
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "packages": packages(),
        "os": {"system": here.system, "release": here.macos or platform.release(), "container": here.container},
        "cpu": {"arch": here.arch, "model": cpu_model(), "features": cpu_features(), "cores": os.cpu_count()},
        "memory": here.memory,
        "environment": {name: os.environ[name] for name in DECIDING if name in os.environ},
    }


@lru_cache(maxsize=1)
def commit() -> str:
    """The kit's commit, with `-changed` where files differ from it; without git, the one that it was made of, or
    `unknown`.
    """
    # A container's image was given the commit when it was built; git wrote it into what it exported, such as a bundle.
    if not (ROOT / ".git").exists():
        return os.environ.get("KIT_COMMIT") or _exported_commit() or UNKNOWN
    found = _git("rev-parse", "HEAD")
    return f"{found}-changed" if found and _git("status", "--porcelain") else found or UNKNOWN


def _exported_commit() -> str:
    try:
        written = (ROOT / "env" / "commit").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    return written if re.fullmatch("[0-9a-f]{40,64}", written) else ""


def lock_name() -> str:
    return "macos" if sys.platform == "darwin" else "linux"


@lru_cache(maxsize=1)
def lock_sha256() -> str:
    return hashlib.sha256((ROOT / "env" / "lock" / f"{lock_name()}.txt").read_bytes()).hexdigest()


def packages() -> dict[str, str]:
    """Every installed package and its version."""
    return dict(sorted((normal(package.name), package.version) for package in metadata.distributions()))


def cpu_model() -> str:
    if sys.platform == "darwin":
        return machine.sysctl("machdep.cpu.brand_string") or "unknown"
    return _cpuinfo("model name") or _cpuinfo("Model") or _cpuinfo("CPU part") or "unknown"


def cpu_features() -> list[str]:
    """The instruction sets that matrix products choose between."""
    if sys.platform == "darwin":
        names = ("FEAT_BF16", "FEAT_I8MM", "FEAT_DotProd", "FEAT_FP16", "FEAT_SME")
        return [name for name in names if machine.sysctl(f"hw.optional.arm.{name}") == "1"]
    wanted = {"avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "amx_tile"}
    wanted |= {"asimd", "asimddp", "bf16", "i8mm", "sve", "sve2", "f16c", "fphp", "asimdhp"}
    return sorted(wanted & set((_cpuinfo("flags") or _cpuinfo("Features")).split()))


@lru_cache(maxsize=8)
def _cpuinfo(name: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
