"""Another machine imitated for Python, for a run of the tests there (tests/elsewhere/run.sh): a stand-in, not a Mac.

It finds code and tests that hold the machine before them to be everybody's. It proves nothing about Metal, about
arm64's kernels, or about what Apple's tools do. What is left of this machine: torch's wheel, psutil's counters, and
what uv, which is no Python, sees.
"""

import os

MACHINE = os.environ.get("KIT_TESTS_ELSEWHERE", "")


def be_aarch64() -> None:
    import platform

    platform.machine = lambda: "aarch64"


def be_mac() -> None:
    import contextlib
    import importlib
    import pathlib
    import platform
    import resource
    import sys
    import sysconfig
    import types

    sysconfig.get_config_vars()  # reads a file that is named after the platform
    # What looks at the platform while it is imported is to see the real one: it calls what only that has.
    for name in "asyncio ctypes.util multiprocessing socket ssl subprocess tempfile psutil truststore".split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("pip._vendor.truststore")
    proxies = types.ModuleType("_scproxy")  # the system's settings: none
    proxies._get_proxies = dict  # type: ignore[attr-defined]
    proxies._get_proxy_settings = lambda: {"exclude_simple": False, "exceptions": ()}  # type: ignore[attr-defined]
    sys.modules["_scproxy"] = proxies
    import urllib.request

    sys.platform = "darwin"
    importlib.reload(urllib.request)
    platform.system = lambda: "Darwin"
    platform.machine = lambda: "arm64"
    platform.mac_ver = lambda *_, **__: ("15.3", ("", "", ""), "arm64")
    real = resource.getrusage

    def getrusage(who: int) -> resource.struct_rusage:
        user, system, peak, *rest = real(who)
        if who == resource.RUSAGE_SELF:  # Linux's begins at the parent's peak; a Mac's does not
            status = pathlib.Path("/proc/self/status").read_text().splitlines()
            peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
        return resource.struct_rusage((user, system, peak * 1024, *rest))  # bytes, where Linux has KiB

    resource.getrusage = getrusage
    for name in (
        "sched_getaffinity sched_setaffinity posix_fadvise posix_fallocate copy_file_range memfd_create pidfd_open "
        "eventfd splice setresuid fdatasync execveat"
    ).split():
        if hasattr(os, name):
            delattr(os, name)


if MACHINE:
    {"mac": be_mac, "aarch64": be_aarch64}[MACHINE]()
