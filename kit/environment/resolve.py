"""env/lock/*.txt: every package with its version and hashes, for Linux, macOS, the development tools and the extras."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from kit.environment import lock as locks
from kit.environment.wheels import find_links_of_pip
from kit.errors import KitError
from kit.paths import ROOT

ENV = ROOT / "env"
LOCK = ENV / "lock"
PYTHONS = ">=3.11,<3.14"

HEADER = """\
# Made by `make lock` from {sources}: do not edit.
# {scope}, Python 3.11 to 3.13. Installed by env/bootstrap.sh with --require-hashes.
"""

# Naming aarch64 as an environment of its own fails on a machine that sees no wheel for it (uv), so Linux is one.
LINUX = "sys_platform == 'linux'"
MACOS = "sys_platform == 'darwin' and platform_machine == 'arm64'"

CUDA = ("nvidia-", "triton", "cuda-")  # what the names of its packages begin with


def rebuild() -> list[Path]:
    """Resolves the locks anew, keeping what is pinned in them where it still fits; returns their paths.

    Raises KitError where uv cannot resolve, or where a CUDA package got in.
    """
    torch = tomllib.loads((ENV / "torch-wheels.toml").read_text(encoding="utf-8"))
    cpu_torch = f"torch=={torch['version']}\n"
    runtime = ENV / "requirements.in"
    linux = compile_lock("linux.txt", "Linux on x86_64 and aarch64", [LINUX], [runtime], constraint=cpu_torch)
    linux.write_text(merge_hashes(linux.read_text(), torch["version"], list(torch["sha256"].values())))
    macos = compile_lock("macos.txt", "macOS on arm64", [MACOS], [runtime])
    made = [linux, macos]
    # What comes besides shares .venv with all before it, so it takes the versions that are pinned there.
    for extra in (locks.DEVELOPMENT, *locks.EXTRAS):
        pins = {
            f"{pin.name}=={pin.version}{pin.marker and f' ; {pin.marker}'}\n"
            for lock in made
            for pin in locks.parse(lock.read_text())
            if pin.name != "torch"  # its version differs by platform
        }
        source, shared = ENV / f"requirements-{extra}.in", "".join(sorted(pins))
        made.append(compile_lock(f"{extra}.txt", "Linux and macOS", [LINUX, MACOS], [source], constraint=shared))
    for lock in made:
        if found := [pin.name for pin in locks.parse(lock.read_text()) if pin.name.startswith(CUDA)]:
            raise KitError(f"{lock.name} holds a CUDA package ({found[0]}).", locks.NEXT)
    return made


def compile_lock(name: str, scope: str, environments: list[str], sources: list[Path], constraint: str = "") -> Path:
    """env/lock/`name`, resolved by uv for `environments`. No host, no path of this machine stands in it."""
    lock = LOCK / name
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "pyproject.toml").write_text(
            f'[project]\nname = "lock"\nversion = "0"\nrequires-python = "{PYTHONS}"\n'
            f"[tool.uv]\nenvironments = {json.dumps(environments)}\n"
        )
        (place / "constraint.txt").write_text(constraint)
        if lock.exists():
            (place / name).write_text(lock.read_text())
        uv = str(Path(sys.executable).with_name("uv"))
        command = [uv, "pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes"]
        command += ["--no-header", "--no-annotate", "--quiet", "--index-strategy", "unsafe-best-match"]
        command += ["--constraint", "constraint.txt", "--output-file", name, *find_links(), *map(str, sources)]
        # For macOS, compiled for the oldest that torch has wheels for.
        environment = os.environ | ({"MACOSX_DEPLOYMENT_TARGET": "14.0"} if environments == [MACOS] else {})
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KitError(f"uv could not resolve {name}:\n{done.stderr.strip()}", "see CONTRIBUTING.md, «Locks»")
        resolved = (place / name).read_text()
    names = " and ".join(f"env/{source.name}" for source in sources)
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(HEADER.format(sources=names, scope=scope) + resolved)
    return lock


def find_links() -> list[str]:
    """The machine's find-links as uv's options: uv reads no pip configuration."""
    links = os.environ.get("UV_FIND_LINKS") or find_links_of_pip()
    return [part for link in links.replace(",", " ").split() for part in ("--find-links", link)]


def merge_hashes(lock: str, version: str, hashes: list[str]) -> str:
    """The lock with `hashes` as torch's: uv writes only those of the wheels that it can see.

    Raises KitError where the lock has another torch, or uv saw a wheel that is not among them.
    """
    torch = [pin for pin in locks.parse(lock) if (pin.name, pin.version) == ("torch", version)]
    if not torch:
        raise KitError(f"the Linux lock has no torch=={version} with a hash.", "see CONTRIBUTING.md, «Locks»")
    seen = torch[0].sha256
    if unknown := set(seen) - set(hashes):
        raise KitError(f"a torch {version} wheel has a hash that env/torch-wheels.toml does not list: {unknown.pop()}.")
    return lock.replace(_lines(seen), _lines(sorted(hashes)))


def _lines(hashes: Iterable[str]) -> str:
    return " \\\n".join(f"    --hash=sha256:{value}" for value in hashes)
