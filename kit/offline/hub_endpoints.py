"""What a Hub says of its models: the part of its HTTP interface that huggingface_hub's downloads ask for.

Only what is listed for a model can be had: a request is looked up, never turned into a path. Errors carry X-Error-Code,
from which the client makes its exceptions. Nothing is offered of Xet, so clients download over plain HTTP.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kit.models.registry import ModelFile
from kit.offline.http_server import FilePart


def app(routes: Iterable[Route]) -> Starlette:
    """`routes`, no accounts, and the Hub's error for whatever else is asked for."""
    whoami = Route("/api/whoami-v2", lambda request: error(401, "", "This server has no accounts: it needs no token."))
    return Starlette(routes=[whoami, *routes], exception_handlers={404: lambda request, error: no_model()})


def routes(model: ServedModel) -> list[Route]:
    """What can be asked of a model."""

    def info(request: Request) -> Response:
        known = _has_revision(model, request.path_params.get("revision", "main"))
        return _info(model) if known else _no_revision()

    def tree(request: Request) -> Response:
        if not _has_revision(model, request.path_params["revision"]):
            return _no_revision()
        recursive = request.query_params.get("recursive", "").lower() in ("true", "1")
        return _tree(model, request.path_params.get("folder", ""), recursive)

    def access(request: Request) -> Response:
        return Response(headers={"X-Repo-Commit": model.revision})

    def nothing(request: Request) -> Response:
        return error(404, "", "Not found")

    def file(request: Request) -> Response:
        if not _has_revision(model, request.path_params["revision"]):
            return _no_revision()
        path = request.path_params["path"]
        file = next((file for file in model.files if file.path == path), None)
        if file is None:
            return _no_entry(model)
        headers = {"X-Repo-Commit": model.revision}
        if file.lfs:
            headers |= {"X-Linked-Etag": file.etag, "X-Linked-Size": str(file.size)}
        return send_file(model, file, headers)

    about = f"/api/models/{model.repo_id}"
    return [
        Route(about, info),
        Route(about + "/revision/{revision:path}", info),
        Route(about + "/tree/{revision}", tree),
        Route(about + "/tree/{revision}/{folder:path}", tree),
        Route(about + "/auth-check", access),
        Route(about + "/{rest:path}", nothing),
        Route(f"/{model.repo_id}/resolve/{{revision}}/{{path:path}}", file),
    ]


def _has_revision(model: ServedModel, revision: str) -> bool:
    return revision in (model.revision, "main")


def _info(model: ServedModel) -> Response:
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


def _tree(model: ServedModel, folder: str, recursive: bool) -> Response:
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


def _json(value: Any, model: ServedModel) -> Response:
    return JSONResponse(value, headers={"X-Repo-Commit": model.revision})


def error(status: int, code: str, message: str) -> Response:
    """An error as the Hub words it. `code` is its X-Error-Code, or ""; never put what a client sent into `message`."""
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return JSONResponse({"error": message}, status, headers)


def no_model() -> Response:
    return error(404, "RepoNotFound", "Repository not found")


def _no_revision() -> Response:
    return error(404, "RevisionNotFound", "Invalid rev id")


def _no_entry(model: ServedModel) -> Response:
    """With the commit, so that a client remembers that this commit has no such file."""
    answer = error(404, "EntryNotFound", "Entry not found")
    answer.headers["X-Repo-Commit"] = model.revision
    return answer


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


def send_file(
    model: ServedModel, file: ServedFile, headers: dict[str, str], media_type: str = "application/octet-stream"
) -> Response:
    """The file, or the part of it that is asked for."""
    try:
        content = open_file(model, file)
    except OSError:
        return error(503, "", "This server has as many files open as it may. Ask again in a moment")
    if content is None:
        return error(500, "", "The file is no longer whole on this server")
    return FilePart(content, {"ETag": file.etag, **headers}, media_type)


def open_file(model: ServedModel, file: ServedFile) -> BinaryIO | None:
    """The regular file of that size that was listed, or None. Below the folder no symbolic link is followed.

    Raises OSError where no more files can be opened: that says nothing of this one.
    """
    path = model.folder.resolve() / file.path
    try:
        if path.resolve(strict=True) != path or not path.is_file():
            return None
        content = path.open("rb", buffering=0)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return None
    if os.fstat(content.fileno()).st_size != file.size:
        content.close()
        return None
    return content
