"""The settings: the one table of variables, and .env.

Order: make variable or flag, environment, .env, default. Imported before torch, transformers or huggingface_hub, which
read theirs at import. Parsed by Python 3.9, for the doctor.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from kit.errors import KitError
from kit.paths import ROOT

# --- The table --------------------------------------------------------------------------------------------------------

# Words of Python, of click, or of a module, in place of the variable's own name.
PARAMETERS = {
    "JSON": "as_json",
    "FROM": "source",
    "CONTEXT": "context_tokens",
    "IN": "source_file",
    "OUT": "target_file",
}


@dataclass(frozen=True)
class Variable:
    """A row of env/variables.txt, whose head says what the columns are. `verbs` is empty for a library's own name; a
    number goes from `low` to `high`.
    """

    name: str
    kind: str
    default: str | None
    verbs: tuple[str, ...]
    where: tuple[str, ...]
    example: str
    about: str
    low: int | None = None
    high: int | None = None

    @property
    def typed(self) -> bool:
        """Whether it counts only where it is typed behind make."""
        return "typed" in self.where

    @property
    def option(self) -> str:
        """`MAX_NEW_TOKENS` -> `--max-new-tokens`"""
        return "--" + self.name.lower().replace("_", "-")

    @property
    def parameter(self) -> str:
        """The name of the verb's parameter."""
        return PARAMETERS.get(self.name, self.name.lower())


def _row(line: str) -> Variable:
    name, kind, default, verbs, where, example, about = (cell.strip() for cell in line.split("|"))
    kind, low, high = [*kind.split(":"), "", ""][:3]
    return Variable(
        name,
        kind,
        None if default == "-" else default.strip('"'),
        () if verbs == "-" else tuple(verbs.split()),
        tuple(where.split()),
        "" if example == "-" else example,
        about.replace("\\n", "\n"),
        int(low) if low else None,
        int(high) if high else None,
    )


TABLE = ROOT / "env" / "variables.txt"
VARIABLES = tuple(_row(line) for line in TABLE.read_text(encoding="utf-8").splitlines() if line[:1].isupper())
BY_NAME = {variable.name: variable for variable in VARIABLES}
# The verbs that have a sister in the container.
CONTAINER_VERBS = ("run", "batch", "serve", "tune", "verify", "bench", "download", "test")


def taken_by(verb: str) -> list[Variable]:
    """The variables of a verb of the Makefile, in the table's order."""
    if verb.startswith("docker-"):
        return taken_by(verb[len("docker-") :]) + taken_by("docker")
    return [variable for variable in VARIABLES if verb in variable.verbs]


def counts(variable: Variable) -> bool:
    """Whether the environment's value is one that this verb was given: of a `typed` one, only where make says so."""
    return not variable.typed or variable.name in os.environ.get("KIT_TYPED", "").split()


# --- .env -------------------------------------------------------------------------------------------------------------

# The forms that every reader of it (python-dotenv, Compose, a shell) reads alike. They disagree about quotes, `export`,
# blanks, inline comments, `$`, backslashes, CRLF and a BOM, so a line with one of them is named and not guessed at.

# KIT_DOTENV names another file in its place: the tests must not read yours.
DOTENV = Path(os.environ.get("KIT_DOTENV") or ROOT / ".env")
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
        line = content.partition(b"\r")[0].count(b"\n") + 1
        found.append(Fault(line, "has Windows line ends (CRLF): save it with LF"))
        content = content.replace(b"\r", b"")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return [*found, Fault(1, "is not UTF-8")]
    lines = enumerate(text.split("\n"), start=1)
    return found + [Fault(number, fault) for number, line in lines if (fault := _line_fault(line))]


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


def exposures(path: Path) -> list[tuple[str, str]]:
    """Who but its owner could come to read the file: (what, what to do about it) each; none for a private one. Whether
    git would commit it, git may not say: see `git_is_silent`."""
    found = []
    if os.name == "posix" and path.stat().st_mode & 0o077:
        found.append((".env can be read by other accounts of this machine", "chmod 600 .env"))
    git = ["git", "-C", str(path.parent)]
    if output([*git, "ls-files", path.name]):
        found.append((".env is in git, where its token does not belong", "git rm --cached .env"))
    elif output([*git, "rev-parse", "--is-inside-work-tree"]) and not output([*git, "check-ignore", path.name]):
        found.append(("git would commit .env", "add /.env to .gitignore"))
    return found


def git_is_silent(folder: Path) -> str:
    """Why git says nothing about a folder that is in a clone, in its words; "" where it does or there is no clone."""
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        return ""
    try:
        done = subprocess.run(["git", "-C", str(folder), "rev-parse"], capture_output=True, check=False)
    except OSError:
        return "there is no git on this machine"
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[0] if done.returncode and lines else ""


def output(command: list[str]) -> str:
    """What a command prints; "" where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        return ""
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""


@dataclass(frozen=True)
class Settings:
    """What .env says. `values` by name, as written; `warnings` a line each, for stderr."""

    values: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def how_to_write(name: str, path: Path = DOTENV) -> str:
    """What to type so that .env holds a value: what is there already is kept."""
    if path.exists():
        return f"write it behind {name}= in .env"
    return f"cp .env.example .env && chmod 600 .env, and write it behind {name}="


def content(path: Path) -> bytes | None:
    """What is in .env, None for none. Raises KitError where it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        following = "move it away: .env is a file" if path.is_dir() else "chmod 600 .env"
        raise KitError(f".env cannot be read: {error.strerror}.", following) from error


def read(path: Path = DOTENV) -> Settings:
    """Reads .env; none is an empty one. Raises KitError that names each line that readers would disagree about."""
    raw = content(path)
    if raw is None:
        return Settings()
    if found := faults(raw):
        lines = "\n".join(f"  line {fault.line}: {fault.text}" for fault in found)
        raise KitError(f".env has what its readers read differently:\n{lines}", "see .env.example for the form")

    values = {name: value for name, value in _values(path, raw).items() if value}
    warnings = [f"{what}: {following}" for what, following in exposures(path)]
    warnings += [f".env sets {name}, which nothing here reads" for name in values if not may_stand_in_dotenv(name)]
    return Settings(values, tuple(warnings))


def _values(path: Path, content: bytes) -> dict[str, str | None]:
    try:
        from dotenv import dotenv_values
    except ImportError:  # the doctor, before there is an environment: of a checked form a line is what it says
        lines = content.decode("utf-8").split("\n")
        return {line.partition("=")[0]: line.partition("=")[2] for line in lines if line and not line.startswith("#")}
    return dotenv_values(path, interpolate=False)


def may_stand_in_dotenv(name: str) -> bool:
    return name in BY_NAME and "dotenv" in BY_NAME[name].where


def clear_foreign() -> None:
    """Takes out of the environment what other programs export and what would decide about the kit (env/foreign.txt)."""
    lines = (ROOT / "env" / "foreign.txt").read_text(encoding="utf-8").splitlines()
    for row in (line.split("|") for line in lines if line[:1].isupper()):
        names, kept = row[0].strip(), row[1].split()
        for name in [name for name in os.environ if fnmatchcase(name, names)]:
            if not any(fnmatchcase(name, pattern) for pattern in kept):
                del os.environ[name]


def apply(settings: Settings) -> None:
    """Puts what the libraries read into the environment, where the environment does not say otherwise already."""
    for name in (variable.name for variable in VARIABLES if not variable.verbs):
        # An empty variable is none: CI systems and `docker run -e` pass those on.
        if name in settings.values and not os.environ.get(name):
            os.environ[name] = settings.values[name]
