"""The lock's wheels for a platform and a Python: which packages, and which files fit.

Standard library alone, without `packaging`: a machine that is set up from a bundle has no package yet.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from subprocess import PIPE, STDOUT

from kit.environment import lock as locks
from kit.environment.lock import PLATFORMS, Pin, Target, normal
from kit.errors import Command, KitError
from kit.files import sha256
from kit.paths import ROOT

# torch's own wheels need no less: glibc 2.28 and macOS 14.
GLIBC_MINOR, MACOS = 28, 14

FILE = re.compile(
    r"(?P<name>[A-Za-z0-9._]+)-(?P<version>[A-Za-z0-9._+!]+)(?:-[0-9][A-Za-z0-9._]*)?"
    r"-(?P<python>[a-z0-9_.]+)-(?P<abi>[a-z0-9_.]+)-(?P<platform>[A-Za-z0-9_.]+)\.whl"
)


def package(filename: str) -> tuple[str, str]:
    """The package and the version that a wheel's file name says; ("", "") for a name that is none."""
    match = FILE.fullmatch(filename)
    return (normal(match["name"]), match["version"]) if match else ("", "")


def fits(filename: str, target: Target) -> bool:
    """True for a wheel that `target` can install, by the tags in its name (PEP 425)."""
    match = FILE.fullmatch(filename)
    if not match:
        return False
    pythons, abis, platforms = (match[part].split(".") for part in ("python", "abi", "platform"))
    return any(_fits_python(tag, abis, target.minor) for tag in pythons) and any(
        _fits_platform(tag, target) for tag in platforms
    )


def _fits_python(tag: str, abis: list[str], minor: int) -> bool:
    found = re.fullmatch(r"(cp|py)3([0-9]*)", tag)
    if not found or int(found[2] or 0) > minor:
        return False
    if found[1] == "py":
        return "none" in abis
    own = f"cp3{minor}"
    return "abi3" in abis or (tag == own and ("none" in abis or own in abis))


def _fits_platform(tag: str, target: Target) -> bool:
    if tag == "any":
        return True
    _, system, machine = PLATFORMS[target.platform]
    if system == "darwin":
        found = re.fullmatch(r"macosx_([0-9]+)_[0-9]+_(arm64|universal2)", tag)
        return bool(found) and int(found[1]) <= MACOS  # type: ignore[index]
    return tag in linux_tags(machine)


def linux_tags(machine: str) -> list[str]:
    """The platform tags that a glibc of 2.28 takes, the newest first (PEP 600)."""
    named = [f"{name}_{machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    return [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC_MINOR, 4, -1)] + named


# --- Fetched by pip, which knows the machine's index, proxy and CA settings -------------------------------------------


# pip keeps what it fetched only when all of a call came: a dozen packages are lost at most, and its cache has them.
AT_ONCE = 12
NEXT = "check the network (and PIP_INDEX_URL, PIP_FIND_LINKS, HTTPS_PROXY if you use them); the same command goes on"


def missing(target: Target, folder: Path) -> list[Pin]:
    """The pins of `target` for which no wheel that fits lies in `folder`, or another than the lock pins."""
    return [pin for pin in locks.pins(target) if wheel_of(pin, target, folder) is None]


def wheel_of(pin: Pin, target: Target, folder: Path) -> Path | None:
    """The wheel of `pin` for `target` in `folder`, proved by its sha256."""
    for path in sorted(folder.glob("*.whl")):
        is_it = package(path.name)[0] == pin.name and fits(path.name, target)
        if is_it and path.is_file() and sha256(path) in pin.sha256:
            return path
    return None


def brought(names: Iterable[str]) -> list[Path]:
    """These packages' wheels for this machine in env/wheels/, each proved. Raises KitError for one that is absent."""
    target, folder = locks.this(), ROOT / "env" / "wheels"
    pins, found = {pin.name: pin for pin in locks.pins(target)}, []
    for name in names:
        if (wheel := wheel_of(pins[name], target, folder)) is None:
            raise KitError(
                f"env/wheels/ has no wheel of {name} {pins[name].version} for {target}.", Command("bundle"), " has"
            )
        found.append(wheel)
    return found


def fetch(
    target: Target, wanted: Iterable[Pin], folder: Path, on_share: Callable[[float], None] = lambda share: None
) -> None:
    """Puts the wheels of `wanted` into `folder`, each under its name when it is whole. Raises KitError."""
    wanted = sorted(wanted, key=lambda pin: (pin.name != "torch", pin.name))  # what may be out of reach first
    groups = [wanted[:1], *(wanted[start : start + AT_ONCE] for start in range(1, len(wanted), AT_ONCE))]
    arriving = folder / ".arriving"
    for number, group in enumerate(filter(None, groups)):
        shutil.rmtree(arriving, ignore_errors=True)
        arriving.mkdir(parents=True)
        _download(target, group, arriving)
        for wheel in arriving.glob("*.whl"):
            wheel.replace(folder / wheel.name)
        on_share((number + 1) / len(groups))
    shutil.rmtree(arriving, ignore_errors=True)
    if absent := missing(target, folder):
        raise KitError(f"pip brought no wheel of {absent[0].name} that fits {target}.", NEXT)


def _download(target: Target, group: list[Pin], folder: Path) -> None:
    requirements = folder / "requirements.txt"
    # Without the lock's markers: pip holds them against the machine that it runs on.
    lines = [
        " ".join([f"{pin.name}=={pin.version}", *(f"--hash=sha256:{value}" for value in sorted(pin.sha256))]) + "\n"
        for pin in group
    ]
    requirements.write_text("".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", "--dest", str(folder)]
    command += ["--implementation", "cp", "--python-version", target.python, "--abi", f"cp3{target.minor}"]
    _, system, machine = PLATFORMS[target.platform]
    for tag in [f"macosx_{MACOS}_0_arm64"] if system == "darwin" else linux_tags(machine):
        command += ["--platform", tag]
    for link in _torch_page(target):
        command += ["--find-links", link]
    command += ["--requirement", str(requirements)]
    done = subprocess.run(command, stdout=PIPE, stderr=STDOUT, text=True, errors="replace", check=False)
    if done.returncode:
        raise _failure(target, group, done.stdout)


def _torch_page(target: Target) -> list[str]:
    """PyTorch's page of CPU wheels, as env/bootstrap.sh takes it: where no find-links are set."""
    if not target.platform.startswith("linux") or find_links_of_pip():
        return []
    return re.findall(r"^TORCH_PAGE=(\S+)", (ROOT / "env" / "bootstrap.sh").read_text(encoding="utf-8"), re.MULTILINE)


def find_links_of_pip() -> str:
    """The find-links that pip is told of, by the environment or its configuration; "" for none."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    named = os.environ.get("PIP_FIND_LINKS")
    return named or subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _failure(target: Target, group: list[Pin], said: str) -> KitError:
    """pip's own last words, and the next step for the cause that they name."""
    causes = {
        "DO NOT MATCH THE HASHES": (
            "a package is not the pinned one (its sha256 differs).",
            "try another network; if you use a mirror of the package index, tell its keeper",
        ),
        "No space left": ("the disk is full.", "free some room; the same command goes on"),
        "quota exceeded": ("the disk quota is used up.", "free some room; the same command goes on"),
        "CERTIFICATE_VERIFY_FAILED": (
            "the package index's certificate was refused.",
            "behind a company proxy, name its CA file: SSL_CERT_FILE=/path/to/ca.pem, then the same command",
        ),
    }
    what = f"the wheels for {target} were not fetched"
    for sign, (message, hint) in causes.items():
        if sign in said:
            return KitError(f"{what}: {message}", hint)
    if found := re.findall(r"No matching distribution found for ([^=\s]+==[^\s(]+)", said):
        return KitError(f"{what}: no index or find-links that pip knows has {found[0]} for it.", NEXT)
    last = [line.strip() for line in said.splitlines() if line.startswith("ERROR")][-1:] or said.splitlines()[-1:]
    return KitError(f"{what} ({group[0].name} …).\n  pip: {' '.join(last)}", NEXT)
