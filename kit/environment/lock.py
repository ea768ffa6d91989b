"""The lock: which packages, in which versions, with which files, for each platform and Python.

Standard library alone, without `packaging`: a machine that is set up from a bundle has no package yet. Parsed by
Python 3.9 too: the doctor's first stage reads locks before there is an environment.
"""

from __future__ import annotations

import ast
import operator
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from kit.errors import Command, KitError, WrongUsage
from kit.paths import ROOT

# Each platform: its lock, and what the markers there ask for.
PLATFORMS = {
    "linux-x86_64": ("linux.txt", "linux", "x86_64"),
    "linux-aarch64": ("linux.txt", "linux", "aarch64"),
    "macos-arm64": ("macos.txt", "darwin", "arm64"),
}

PYTHONS = ("3.11", "3.12", "3.13")

# What .venv may have besides, in locks of their own: the development tools, and what `make setup EXTRA=…` names.
DEVELOPMENT = "dev"
EXTRAS = ("notebook", "ray")
NEXT = "git checkout env/lock"

PIN = re.compile(
    r"^(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[^\s;]+)(?: ; (?P<marker>[^\\\n]+?))? \\\n"
    r"(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n?)+)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Target:
    """What wheels are for: a key of PLATFORMS, a Python such as `3.11`, and those of EXTRAS that go along."""

    platform: str
    python: str
    extras: tuple[str, ...] = ()

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
    """One package of a lock, where `marker` holds ("": everywhere). Any file with one of these sha256 is it."""

    name: str
    version: str
    marker: str
    sha256: tuple[str, ...]


def this(python: str | None = None) -> Target:
    """The machine and the Python that this runs on, or another one. Raises KitError for one that no lock is for."""
    system, machine = platform.system(), platform.machine()
    python = python or ".".join(platform.python_version_tuple()[:2])
    machine = {("Linux", "arm64"): "aarch64"}.get((system, machine), machine)  # as some kernels say
    for name, (_, *wanted) in PLATFORMS.items():
        if wanted == [system.lower(), machine] and python in PYTHONS:
            return Target(name, python)
    raise KitError(f"there is no lock for {system} on {machine} with Python {python}.", Command("doctor"))


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
    """What the lock installs on `target`, and then what its extras add. Raises KitError where a lock is missing or of
    another form."""
    _, system, machine = PLATFORMS[target.platform]
    facts = {"sys_platform": system, "platform_machine": machine, "python_full_version": target.python}
    facts |= {"platform_python_implementation": "CPython", "implementation_name": "cpython"}
    found: dict[str, Pin] = {}
    for lock in (target.lock, *map(path_of, target.extras)):
        for pin in read(lock):
            if _holds(pin.marker, facts):
                found.setdefault(pin.name, pin)  # in two locks it is of one version
    return tuple(found.values())


def path_of(extra: str) -> str:
    """The lock of one of EXTRAS, or of the development tools."""
    return f"env/lock/{extra}.txt"


def extras_of(venv: Path) -> list[str]:
    """Those that a set-up has put into .venv."""
    return [extra for extra in (DEVELOPMENT, *EXTRAS) if (venv / f"lock-{extra}.txt").exists()]


def extras(asked: str) -> tuple[str, ...]:
    """`ray` as a list with commas. Raises WrongUsage for one that is none."""
    names = tuple(sorted({name.strip() for name in asked.split(",") if name.strip()}))
    for name in names:
        if name not in EXTRAS:
            raise WrongUsage(f"EXTRA={name}: there is none. There are: {', '.join(EXTRAS)}.", "leave it out")
    return names


def require_extra(name: str, package: str) -> None:
    """Raises KitError where the extra, which brings `package`, is not in the environment that this runs in."""
    if package not in installed(Path(sys.prefix)):
        raise KitError(f"{package} is not in .venv: it comes with an extra lock.", Command("setup", EXTRA=name))


def read(lock: str) -> list[Pin]:
    """Every pin of a lock, wherever it is for. Raises KitError where it is missing or of another form."""
    try:
        text = (ROOT / lock).read_text(encoding="utf-8")
    except OSError as error:
        raise KitError(f"{lock} cannot be read: {error.strerror}.", NEXT) from error
    found = parse(text)
    if len(found) != len(re.findall(r"^[a-z0-9][^ ]*==", text, re.MULTILINE)) or not found:
        raise KitError(f"{lock} has lines that are of another form.", NEXT)
    return found


def parse(text: str) -> list[Pin]:
    """The pins in the text of a lock; what is of another form is left out."""
    return [
        Pin(entry["name"], entry["version"], entry["marker"] or "", tuple(re.findall(r"sha256:(\w+)", entry["hashes"])))
        for entry in PIN.finditer(text)
    ]


# --- The markers of the locks (PEP 508), which are Python expressions too ---------------------------------------------


COMPARISONS = {ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.GtE: operator.ge}


def _holds(marker: str, facts: dict[str, str]) -> bool:
    try:
        return not marker or _is_true(ast.parse(marker, mode="eval").body, facts)
    except (SyntaxError, KeyError, ValueError):
        raise KitError("a lock has a marker that the kit cannot read.", NEXT) from None


def _is_true(marker: ast.expr, facts: dict[str, str]) -> bool:
    """Names, strings, ==, !=, <, >=, and, or: what is in the locks. Raises KeyError or ValueError for more."""
    if isinstance(marker, ast.BoolOp):
        every = all if isinstance(marker.op, ast.And) else any
        return every([_is_true(value, facts) for value in marker.values])
    if not isinstance(marker, ast.Compare) or len(marker.ops) > 1:
        raise ValueError
    name, value, compare = marker.left, marker.comparators[0], COMPARISONS[type(marker.ops[0])]
    if not isinstance(name, ast.Name) or not isinstance(value, ast.Constant):
        raise ValueError
    fact, asked = facts[name.id], str(value.value)
    return bool(compare(_version(fact), _version(asked)) if name.id == "python_full_version" else compare(fact, asked))


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


# --- What is installed ------------------------------------------------------------------------------------------------


def normal(name: str) -> str:
    """A package's name as the index and the locks write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(venv: Path) -> dict[str, str]:
    """Package -> version, from the names of the .dist-info folders."""
    folders = venv.glob("lib/python*/site-packages/*.dist-info")
    names = [folder.name[: -len(".dist-info")].rpartition("-") for folder in folders]
    return {normal(name): version for name, _, version in names}


def differences(pinned: Iterable[Pin], present: dict[str, str]) -> list[str]:
    """What is missing, of another version, or not pinned. Where a package has several pins, each of them is right."""
    versions: dict[str, list[str]] = {}
    for pin in pinned:
        versions.setdefault(pin.name, []).append(pin.version)
    found = [
        f"{name} is {present.get(name, 'missing')} and not {' or '.join(allowed)}"
        for name, allowed in sorted(versions.items())
        if present.get(name) not in allowed
    ]
    return found + [f"{name} is not in the lock" for name in sorted(set(present) - set(versions))]


def of(venv: Path) -> Target:
    """What .venv is for, with its extras, whichever Python asks. Raises KitError for one that no lock is for, and
    where it is empty."""
    pythons = sorted(folder.name.removeprefix("python") for folder in venv.glob("lib/python*"))
    if not pythons:
        raise KitError(f"{venv.name} holds no packages.", Command("clean setup"))
    return replace(this(pythons[0]), extras=tuple(extras_of(venv)))


def unproved(venv: Path) -> list[str]:
    """What of this machine's lock .venv has not, at its version and to be imported, whatever said that it is there."""
    faults = [fault for fault in differences(pins(this()), installed(venv)) if not fault.endswith("is not in the lock")]
    for folder in venv.glob("lib/python*/site-packages"):
        for record in folder.glob("*.dist-info/RECORD"):
            lines = record.read_text(encoding="utf-8").splitlines()
            modules = {line.split(",")[0] for line in lines if re.match(r"\w+(/__init__)?\.py,", line)}
            faults += [f"{record.parent.name}: {path} is missing" for path in modules if not (folder / path).is_file()]
    return faults
