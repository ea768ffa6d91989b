"""What a Hub says of its models: the part of its HTTP interface that huggingface_hub's downloads ask for.

Only what is listed for a model can be had: a request is looked up, never turned into a path. Errors carry X-Error-Code,
from which the client makes its exceptions. Nothing is offered of Xet, so clients download over plain HTTP.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote

from kit.errors import Command, KitError
from kit.models import folder as model_folder
from kit.models.registry import Model, ModelFile
from kit.offline import http_server
from kit.offline.http_server import TIMEOUT, Answer, Exchange, Request, Server, Text


class HubApi:
    """Answers for some models, one revision each."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = {model.repo_id: model for model in models}

    def answer(self, request: Request) -> Answer:
        match [unquote(part) for part in request.path.split("/")]:
            case ["", "api", "whoami-v2"]:
                return error(401, "", "This server has no accounts: it needs no token.")
            case ["", "api", "models", *rest]:
                model, tail = self._find(rest)
                return self._about(request, model, tail) if model else _no_model()
            case ["", *rest]:
                model, tail = self._find(rest)
                if model and tail[:1] == ["resolve"] and len(tail) > 2:
                    return self._file(request, model, tail[1], "/".join(tail[2:]))
                return error(404, "", "Not found") if model else _no_model()
        return error(400, "", "Not a path")

    def _find(self, parts: list[str]) -> tuple[ServedModel | None, list[str]]:
        """The model that a path begins with, `owner/name` or `name`, and the rest of the path."""
        for length in (2, 1):
            if model := self._models.get("/".join(parts[:length])):
                return model, parts[length:]
        return None, []

    def _about(self, request: Request, model: ServedModel, tail: list[str]) -> Answer:
        match tail:
            case ["auth-check"]:
                return Answer(200, {"X-Repo-Commit": model.revision})
            case [] | ["revision", _]:
                return _info(model) if not tail or _has_revision(model, tail[1]) else _no_revision()
            case ["tree", revision, *folders]:
                if not _has_revision(model, revision):
                    return _no_revision()
                recursive = parse_qs(request.query).get("recursive", [""])[-1].lower() in ("true", "1")
                return _tree(model, "/".join(folders), recursive)
        return error(404, "", "Not found")

    def _file(self, request: Request, model: ServedModel, revision: str, path: str) -> Answer:
        if not _has_revision(model, revision):
            return _no_revision()
        file = next((file for file in model.files if file.path == path), None)
        if file is None:
            return _no_entry(model)
        headers = {"X-Repo-Commit": model.revision}
        if file.lfs:
            headers |= {"X-Linked-Etag": file.etag, "X-Linked-Size": str(file.size)}
        answer = http_server.part_of(request, file.size, file.etag, lambda: open_file(model, file), headers)
        return answer or error(500, "", "The file is no longer whole on this server")


def _has_revision(model: ServedModel, revision: str) -> bool:
    return revision in (model.revision, "main")


def _info(model: ServedModel) -> Answer:
    about = {
        "id": model.repo_id,
        "modelId": model.repo_id,
        "sha": model.revision,
        "tags": [],
        "downloads": 0,
        "likes": 0,
    }
    about |= {"private": False, "gated": False, "disabled": False}
    return _json(about | {"siblings": [_sibling(file) for file in model.files]}, model)


def _sibling(file: ServedFile) -> dict[str, Any]:
    facts = {"rfilename": file.path, "size": file.size, "blobId": file.blob_id}
    lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": len(pointer(file))}
    return facts | ({"lfs": lfs} if file.lfs else {})


def _tree(model: ServedModel, folder: str, recursive: bool) -> Answer:
    """What is in a folder of the model ("" is all of it), in one page."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for file in model.files:
        if not file.path.startswith(prefix):
            continue
        parts = file.path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            path = prefix + "/".join(parts[:depth])
            # Not git's id: a mirror holds some of the repository's files only. Clients show it and no more.
            entries[path] = {"type": "directory", "path": path, "size": 0, "oid": git_id("tree", path.encode())}
        if recursive or len(parts) == 1:
            entries[file.path] = _entry(file)
    return _json(list(entries.values()), model) if entries else _no_entry(model)


def _entry(file: ServedFile) -> dict[str, Any]:
    facts = {"type": "file", "path": file.path, "size": file.size, "oid": file.blob_id}
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": len(pointer(file))}
    return facts | ({"lfs": lfs} if file.lfs else {})


def _json(value: Any, model: ServedModel) -> Answer:
    headers = {"Content-Type": "application/json; charset=utf-8", "X-Repo-Commit": model.revision}
    return Answer(200, headers, Text(json.dumps(value).encode()))


def error(status: int, code: str, message: str) -> Answer:
    """An error as the Hub words it. `code` is its X-Error-Code, or ""; never put what a client sent into `message`."""
    headers = {"Content-Type": "application/json; charset=utf-8", "X-Error-Message": message}
    return Answer(
        status, headers | ({"X-Error-Code": code} if code else {}), Text(json.dumps({"error": message}).encode())
    )


def _no_model() -> Answer:
    return error(404, "RepoNotFound", "Repository not found")


def _no_revision() -> Answer:
    return error(404, "RevisionNotFound", "Invalid rev id")


def _no_entry(model: ServedModel) -> Answer:
    """With the commit, so that a client remembers that this commit has no such file."""
    answer = error(404, "EntryNotFound", "Entry not found")
    return Answer(answer.status, {**answer.headers, "X-Repo-Commit": model.revision}, answer.body)


# --- Model folders as a Hub has them ----------------------------------------------------------------------------------


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
        raise KitError(f"the model {model.name} does not come from the Hub.", Command("setup"), " fetches it")
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


# --- A read-only Hub --------------------------------------------------------------------------------------------------


__all__ = ["HubServer", "ServedFile", "ServedModel", "served", "served_folder"]


class HubServer(Server):
    """Serves `models` to whoever reaches `host` and `port` (0: any free one), and ignores a token that is sent."""

    def __init__(
        self,
        models: Iterable[ServedModel],
        host: str = "127.0.0.1",
        port: int = 0,
        on_request: Callable[[Exchange], None] = lambda exchange: None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._api = HubApi(models)
        super().__init__(host, port, on_request, timeout)

    def answer(self, request: Request) -> Answer:
        return self._api.answer(request)
