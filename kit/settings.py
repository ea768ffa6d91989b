"""The settings: the one table of variables, and .env.

Order: make variable or flag, environment, .env, default. Imported before torch, transformers or huggingface_hub, which
read theirs at import. Parsed by Python 3.9, for the doctor.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from kit.errors import KitError
from kit.paths import ROOT

# --- The table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variable:
    """A name that a person may set, for the `verbs` that take it (a library's own names have none).

    `about` says what it does, `example` is its line in .env.example ("": it has none). `kind` is what its value must
    be: text, flag, or a number from `low` to `high`. With `typed` it counts only where it is typed behind make, never
    from the environment or .env: other programs export such names, or it overwrites, deletes or opens a port. With
    `dotenv` it may stand in .env; with `container` the container gets it; with `shell` it is needed before there is
    one.
    """

    name: str
    verbs: str
    about: str
    default: str | None = None
    kind: str = "text"
    low: int | None = None
    high: int | None = None
    example: str = ""
    typed: bool = False
    dotenv: bool = True
    container: bool = True
    shell: bool = False

    @property
    def option(self) -> str:
        """`MAX_NEW_TOKENS` -> `--max-new-tokens`"""
        return "--" + self.name.lower().replace("_", "-")

    @property
    def parameter(self) -> str:
        """The name of the verb's parameter."""
        return {"JSON": "as_json", "FROM": "source"}.get(self.name, self.name.lower())


# In the order in which they are listed; a row here is all that a variable needs beside its use.
VARIABLES = (
    Variable(
        "MODEL",
        "run login download gguf doctor verify bench bundle",
        "The model of every verb: a section of env/models.toml. Without this file it is starter.",
        "starter",
        example="MODEL=llama-3.2-1b",
    ),
    Variable(
        "HF_TOKEN",
        "",
        "A token of your Hugging Face account that reads gated models. This page makes one, with the right box "
        "ticked:\n"
        "https://huggingface.co/settings/tokens/new?canReadGatedRepos=true&tokenType=fineGrained",
        example="HF_TOKEN=",
        container=False,
    ),
    Variable(
        "HF_ENDPOINT",
        "",
        "Another Hub, such as a mirror in the room. A token is sent to it over https only.",
        example="#HF_ENDPOINT=http://192.168.1.10:8080",
    ),
    Variable(
        "DEVICE",
        "run verify",
        "auto takes Apple's GPU (mps) where it works, else the cpu.",
        "auto",
        example="DEVICE=auto",
    ),
    Variable(
        "METHOD",
        "run verify",
        "pipeline (least code), manual (full control) or llamacpp (llama.cpp, the fastest).",
        "pipeline",
        example="METHOD=pipeline",
    ),
    Variable("PROMPT", "run", "The text to complete.", example="#PROMPT=The capital of France is"),
    Variable(
        "PROMPT_FILE",
        "run",
        "The same from a file, byte for byte; - is standard input. In .env a PROMPT must do without quotes, $ and "
        "backslashes.",
        example="#PROMPT_FILE=prompt.txt",
    ),
    Variable(
        "MAX_NEW_TOKENS",
        "run",
        "How many tokens a completion has at most.",
        "50",
        "integer",
        low=1,
        example="MAX_NEW_TOKENS=50",
    ),
    Variable(
        "DTYPE",
        "run verify",
        "For pipeline and manual: auto is the number format of the weights; or bfloat16, float16, float32.",
        "auto",
        example="DTYPE=auto",
    ),
    Variable(
        "QUANT",
        "run gguf verify",
        "For llamacpp: auto is the GGUF file that the model ships, else bf16; or bf16, q8_0, q4_0, and q4_1 where the "
        "model ships it.",
        "auto",
        example="QUANT=auto",
    ),
    Variable(
        "TEMPERATURE",
        "run",
        "0 is greedy decoding; above it tokens are drawn, the same ones for the same SEED.",
        "0",
        "number",
        low=0,
        example="TEMPERATURE=0",
    ),
    Variable("SEED", "run", "Same seed, same draw.", "0", "integer", low=0, high=2**63 - 1, example="SEED=0"),
    Variable(
        "JSON",
        "run verify bench doctor",
        "1: one JSON document on one line instead of text.",
        kind="flag",
        example="#JSON=0",
    ),
    Variable("RECORD", "run verify", "Write it down: a run, or a model's reference.", kind="flag", typed=True),
    Variable("FROM", "run", "Repeat a run that was written down.", typed=True),
    Variable("METHODS", "bench", "A list with commas.", "pipeline,manual,llamacpp", dotenv=False),
    Variable("DEVICES", "bench", "auto: all that work.", "auto", dotenv=False),
    Variable("DTYPES", "bench", "For pipeline and manual.", "", dotenv=False),
    Variable("QUANTS", "bench", "For llamacpp.", "", dotenv=False),
    Variable("RUNS", "bench", "After a warm-up.", "5", "integer", low=1, high=100, dotenv=False),
    Variable("QUALITY", "bench", "Perplexity and agreement too.", kind="flag", dotenv=False),
    Variable("REPO", "add-model", "The repository on the Hub: owner/name.", typed=True),
    Variable("REVISION", "add-model", "A commit, or a branch to pin.", "main", typed=True),
    Variable("NAME", "add-model", "What the kit calls it: MODEL=name.", typed=True),
    Variable("A", "compare", "A report: reports/….json.", dotenv=False, container=False),
    Variable("B", "compare", "Another of the same kind.", dotenv=False, container=False),
    Variable("CODES", "readiness", "A file: a name and a code a line.", dotenv=False, container=False),
    Variable("PLATFORM", "bundle", "What the wheels are for.", "", dotenv=False, container=False),
    Variable("BUNDLE", "setup mirror", "A bundle: folder, tar or address.", "", dotenv=False, container=False),
    Variable("SHA256", "setup", "The bundle's digest.", dotenv=False, container=False),
    Variable("PYTHON", "setup", "The Python that makes .venv.", dotenv=False, container=False),
    Variable("LISTEN", "mirror", "0.0.0.0: every network of this machine.", "127.0.0.1", typed=True, container=False),
    Variable("PORT", "mirror", "", "8080", "integer", low=0, high=65535, dotenv=False, container=False),
    Variable(
        "ALLOW_GATED",
        "mirror",
        "Hand gated models out too: their licence then binds you.",
        kind="flag",
        typed=True,
        container=False,
    ),
    Variable("FORCE", "verify purge", "Replace or remove what is there, unasked.", kind="flag", typed=True),
    Variable(
        "HTTPS_PROXY",
        "",
        "For the network of a company: its proxy, what goes around it, and the file with its certificates.",
        example="#HTTPS_PROXY=http://proxy.example.com:3128",
        container=False,
        shell=True,
    ),
    Variable("HTTP_PROXY", "", "", container=False, shell=True),
    Variable("NO_PROXY", "", "", example="#NO_PROXY=localhost,127.0.0.1", container=False, shell=True),
    Variable("SSL_CERT_FILE", "", "", example="#SSL_CERT_FILE=/path/to/ca.pem", container=False, shell=True),
    Variable(
        "HF_HOME",
        "",
        "Where the Hub's client keeps the token that `make login` stores.",
        example="#HF_HOME=/path/to/folder",
        container=False,
    ),
    Variable("KIT_DEBUG", "", "1 shows where an error comes from.", example="#KIT_DEBUG=0"),
    Variable(
        "MEMORY",
        "docker",
        "For the container: its memory limit, and another base image (sudo sh env/local-base.sh makes this one).",
        example="#MEMORY=6g",
        container=False,
        shell=True,
    ),
    Variable(
        "BASE_IMAGE", "docker", "", example="#BASE_IMAGE=base-model-kit-base:bookworm", container=False, shell=True
    ),
)
BY_NAME = {variable.name: variable for variable in VARIABLES}
# The verbs that have a sister in the container.
CONTAINER_VERBS = ("run", "verify", "bench", "download", "test")


def taken_by(verb: str) -> list[Variable]:
    """The variables of a verb of the Makefile, in the table's order."""
    if verb.startswith("docker-"):
        return taken_by(verb[len("docker-") :]) + taken_by("docker")
    return [variable for variable in VARIABLES if verb in variable.verbs.split()]


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


def exposures(path: Path) -> list[tuple[str, str]]:
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


def _says(command: list[str]) -> str:
    """What a command prints; "" where there is no such command or it fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    except OSError:
        return ""
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""


@dataclass(frozen=True)
class Settings:
    """What .env says. `values` by name, as written; `warnings` a line each, for stderr."""

    values: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read(path: Path = DOTENV) -> Settings:
    """Reads .env; none is an empty one. Raises KitError that names each line that readers would disagree about."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        following = "move it away: .env is a file" if path.is_dir() else "chmod 600 .env"
        raise KitError(f".env cannot be read: {error.strerror}.", following) from error
    found = faults(content)
    if found:
        lines = "\n".join(f"  line {fault.line}: {fault.text}" for fault in found)
        raise KitError(f".env has what its readers read differently:\n{lines}", "see .env.example for the form")

    values = {name: value for name, value in _values(path, content).items() if value}
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
    return name in BY_NAME and BY_NAME[name].dotenv and not BY_NAME[name].typed


def apply(settings: Settings) -> None:
    """Puts what the libraries read into the environment, where the environment does not say otherwise already."""
    for name in (variable.name for variable in VARIABLES if not variable.verbs):
        # An empty variable is none: CI systems and `docker run -e` pass those on.
        if name in settings.values and not os.environ.get(name):
            os.environ[name] = settings.values[name]
