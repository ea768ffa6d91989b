"""The file .env: the forms that every reader of it (python-dotenv, Compose, docker --env-file) reads alike.

Those readers disagree about quotes, `export`, blanks, inline comments, `$`, backslashes, CRLF and a BOM, so a line with
one of them is named instead of guessed at. Standard library only, and parsed by Python 3.8: the doctor reads it too.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import List, Tuple

from kit.registry import ROOT

# KIT_DOTENV names another file in its place: the tests must not read yours.
PATH = Path(os.environ.get("KIT_DOTENV") or ROOT / ".env")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Fault:
    """What one line of .env has that its readers disagree about; `line` counts from 1. Never holds a value."""

    line: int
    text: str


def faults(content: bytes) -> list[Fault]:
    """What must be changed before the file can be read; empty for a good one."""
    found = []
    if content.startswith(b"\xef\xbb\xbf"):
        found.append(Fault(1, "begins with a byte order mark: save it as UTF-8 without BOM"))
        content = content[3:]
    if b"\r" in content:
        found.append(Fault(1, "has Windows line ends (CRLF): save it with LF"))
        content = content.replace(b"\r", b"")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return [*found, Fault(1, "is not UTF-8")]
    for number, line in enumerate(text.split("\n"), start=1):
        fault = _line_fault(line)
        if fault:
            found.append(Fault(number, fault))
    return found


def _line_fault(line: str) -> str:
    if not line or line.startswith("#"):
        return ""
    name, equals, value = line.partition("=")
    if name.startswith("export "):
        return "begins with `export`: leave that word out"
    if not equals:
        return "has no `=`: write NAME=value"
    if name != name.strip() or value != value.strip():
        return f"{name.strip()} has a blank beside `=` or at its end: remove it"
    if not NAME.fullmatch(name):
        return "has a name that is not one (letters, digits, _)"
    if any(mark in value for mark in "\"'`"):
        return f"{name} has quotes: write the value bare, or pass it on the command line"
    if " #" in value or "\t#" in value or value.startswith("#"):
        return f"{name} has a comment behind it: give the comment a line of its own"
    if "$" in value or "\\" in value:
        return f"{name} has a `$` or a backslash: pass it on the command line instead"
    return ""


def exposures(path: Path) -> List[Tuple[str, str]]:
    """Who but its owner could come to read the file: (what, what to do about it) each; none for a private one."""
    found = []
    if os.name == "posix" and path.stat().st_mode & 0o077:
        found.append((".env can be read by other accounts of this machine", "chmod 600 .env"))
    git = ["git", "-C", str(path.parent)]
    if _says([*git, "ls-files", path.name]):
        found.append((".env is in git, where its token does not belong", "git rm --cached .env"))
    elif _says([*git, "rev-parse", "--is-inside-work-tree"]) and not _says([*git, "check-ignore", path.name]):
        found.append(("git would commit .env", "add /.env to .gitignore"))
    return found


def _says(command: List[str]) -> str:
    """What a command prints; "" where there is no such command or it fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    except OSError:
        return ""
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""
