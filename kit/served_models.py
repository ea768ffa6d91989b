"""Model folders as a Hub has them: each file with git's id and, where it is large, its LFS pointer."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kit import model_folder
from kit.errors import KitError
from kit.registry import Model, ModelFile

# Which files the Hub keeps in Git LFS: these suffixes (its default .gitattributes) and whatever is over 10 MB.
LFS_SUFFIXES = (".safetensors", ".gguf", ".bin")
LFS_SIZE = 10_000_000


@dataclass(frozen=True)
class ServedFile:
    """`path` within the model, with slashes; `size` in bytes; `blob_id` is git's sha1, of an LFS file its pointer's."""

    path: str
    size: int
    sha256: str
    blob_id: str
    lfs: bool

    @property
    def etag(self) -> str:
        """What the Hub's clients name the file by in their cache."""
        return f'"{self.sha256 if self.lfs else self.blob_id}"'


@dataclass(frozen=True)
class ServedModel:
    """The `files` of a model at one `revision` (the commit, 40 hex digits); `main` leads there too."""

    repo_id: str
    revision: str
    folder: Path
    files: tuple[ServedFile, ...]


def served(model: Model) -> ServedModel:
    """A model of the registry, from its folder. Raises KitError where it is not whole, or is not on the Hub."""
    if model.repo_id is None:
        raise KitError(f"the model {model.name} does not come from the Hub.", "make setup fetches it")
    model_folder.check(model)
    return served_folder(model.repo_id, model.revision, model.folder, model.files)


def served_folder(repo_id: str, revision: str, folder: Path, files: Iterable[ModelFile]) -> ServedModel:
    return ServedModel(repo_id, revision, folder, tuple(_served_file(folder, file) for file in files))


def _served_file(folder: Path, file: ModelFile) -> ServedFile:
    lfs = file.size > LFS_SIZE or file.path.endswith(LFS_SUFFIXES)
    content = pointer(file) if lfs else (folder / file.path).read_bytes()
    return ServedFile(file.path, file.size, file.sha256, git_id("blob", content), lfs)


def pointer(file: ModelFile | ServedFile) -> bytes:
    """What git holds in place of an LFS file (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n".encode()


def git_id(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def open_file(model: ServedModel, file: ServedFile) -> BinaryIO | None:
    """The regular file of that size that was listed, or None. Below the folder no symbolic link is followed."""
    path = model.folder.resolve() / file.path
    try:
        if path.resolve(strict=True) != path or not path.is_file():
            return None
        content = path.open("rb", buffering=0)
    except OSError:
        return None
    if os.fstat(content.fileno()).st_size != file.size:
        content.close()
        return None
    return content
