"""The lock: which packages, in which versions, with which files, for each platform and Python.

Standard library alone, without `packaging`: a machine that is set up from a bundle has no package yet.
"""

from __future__ import annotations

import ast
import platform
import re
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from kit.errors import Command, KitError, WrongUsage
from kit.paths import ROOT

# Each platform: its lock, and what the markers there ask for.
PLATFORMS = {
    "linux-x86_64": ("linux.txt", "linux", "x86_64"),
    "linux-aarch64": ("linux.txt", "linux", "aarch64"),
    "macos-arm64": ("macos.txt", "darwin", "arm64"),
}


PYTHONS = ("3.11", "3.12", "3.13")


PIN = re.compile(
    r"^(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[^\s;]+)(?: ; (?P<marker>[^\\\n]+?))? \\\n"
    r"(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n?)+)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Target:
    """What wheels are for: a key of PLATFORMS and a Python such as `3.11`."""

    platform: str
    python: str

    def __str__(self) -> str:
        return f"{self.platform}:{self.python}"

    @property
    def lock(self) -> str:
        """The lock's path in the clone."""
        return f"env/lock/{PLATFORMS[self.platform][0]}"

    @property
    def minor(self) -> int:
        return int(self.python.split(".")[1])


@dataclass(frozen=True)
class Pin:
    """One package of a lock: any file with one of these sha256 is it."""

    name: str
    version: str
    sha256: frozenset[str]


def this() -> Target:
    """The machine and the Python that this runs on. Raises KitError for one that no lock is for."""
    system, machine = platform.system(), platform.machine()
    name = {"Linux": "linux", "Darwin": "macos"}.get(system, system) + "-" + {"arm64": "aarch64"}.get(machine, machine)
    name = "macos-arm64" if name == "macos-aarch64" else name
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if name not in PLATFORMS or python not in PYTHONS:
        raise KitError(f"there is no lock for {system} on {machine} with Python {python}.", Command("doctor"))
    return Target(name, python)


def targets(asked: str, python: str) -> list[Target]:
    """`linux-x86_64,macos-arm64:3.12` as targets, sorted; `python` where an item says none. Raises WrongUsage."""
    found = set()
    for item in filter(None, (item.strip() for item in asked.split(","))):
        name, _, version = item.partition(":")
        if name not in PLATFORMS or (version or python) not in PYTHONS:
            raise WrongUsage(
                f"PLATFORM: {item!r} is none. Platforms: {', '.join(PLATFORMS)}; Pythons: {', '.join(PYTHONS)}.",
                Command("bundle", PLATFORM="macos-arm64"),
                ",linux-x86_64:3.12",
            )
        found.add(Target(name, version or python))
    if not found:
        raise WrongUsage("PLATFORM names no platform.", Command("bundle", PLATFORM="linux-x86_64"))
    return sorted(found, key=str)


@cache
def pins(target: Target) -> tuple[Pin, ...]:
    """What the lock installs on `target`. Raises KitError where the lock is missing or of another form."""
    path = ROOT / target.lock
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise KitError(f"{target.lock} cannot be read: {error.strerror}.", "git checkout env/lock") from error
    _, system, machine = PLATFORMS[target.platform]
    facts = {"sys_platform": system, "platform_machine": machine, "python_full_version": target.python}
    facts["platform_python_implementation"] = "CPython"
    entries = list(PIN.finditer(text))
    if len(entries) != len(re.findall(r"^[a-z0-9][^ ]*==", text, re.MULTILINE)) or not entries:
        raise KitError(f"{target.lock} has lines that are of another form.", "git checkout env/lock")
    return tuple(
        Pin(entry["name"], entry["version"], frozenset(re.findall(r"sha256:(\w{64})", entry["hashes"])))
        for entry in entries
        if not entry["marker"] or _holds(_parsed(entry["marker"]), facts)
    )


def _parsed(marker: str) -> ast.expr:
    try:
        return ast.parse(marker.strip(), mode="eval").body
    except SyntaxError:
        raise KitError(f"a lock has a marker that the kit cannot read: {marker}.", "git checkout env/lock") from None


def _holds(marker: ast.expr, facts: dict[str, str]) -> bool:
    """The markers of the locks (PEP 508), which are Python expressions too: names, strings, ==, !=, <, >=, and, or."""
    match marker:
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_holds(value, facts) for value in values)
        case ast.BoolOp(op=ast.Or(), values=values):
            return any(_holds(value, facts) for value in values)
        case ast.Compare(left=ast.Name(id=name), ops=[comparison], comparators=[ast.Constant(value=str(value))]) if (
            name in facts
        ):
            left: Any = facts[name]
            right: Any = value
            if name == "python_full_version":
                left, right = (tuple(map(int, version.split("."))) for version in (left, right))
            match comparison:
                case ast.Eq():
                    return bool(left == right)
                case ast.NotEq():
                    return bool(left != right)
                case ast.Lt():
                    return bool(left < right)
                case ast.GtE():
                    return bool(left >= right)
    raise KitError("a lock has a marker that the kit cannot read.", "git checkout env/lock")


def normal(name: str) -> str:
    """A package's name as the index and the locks write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
