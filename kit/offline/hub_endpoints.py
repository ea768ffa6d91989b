"""What a Hub says of its models: the part of its HTTP interface that huggingface_hub's downloads ask for.

Only what is listed for a model can be had: a request is looked up, never turned into a path. Errors carry X-Error-Code,
from which the client makes its exceptions. Nothing is offered of Xet, so clients download over plain HTTP.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kit.files import git_blob_id
from kit.models.registry import ModelFile
from kit.offline.http_server import FilePart


def app(routes: Iterable[Route]) -> Starlette:
    """`routes`, no accounts, and the Hub's error for whatever else is asked for."""
    whoami = Route("/api/whoami-v2", lambda request: error(401, "", "This server has no accounts: it needs no token."))
    return Starlette(routes=[whoami, *routes], exception_handlers={404: lambda request, error: no_model()})


def routes(model: ServedModel) -> list[Route]:
    """What can be asked of a model."""

    def at_revision(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
        def checked(request: Request) -> Response:
            known = request.path_params.get("revision", "main") in (model.revision, "main")
            return answer(request) if known else error(404, "RevisionNotFound", "Invalid rev id")

        return checked

    @at_revision
    def info(request: Request) -> Response:
        about: dict[str, Any] = {"id": model.repo_id, "modelId": model.repo_id, "sha": model.revision, "tags": []}
        about |= {"downloads": 0, "likes": 0, "private": False, "gated": False, "disabled": False}
        siblings = [
            {"rfilename": file.path, "size": file.size, "blobId": file.blob_id, **_lfs(file, "sha256")}
            for file in model.files
        ]
        return _json(about | {"siblings": siblings}, model)

    @at_revision
    def tree(request: Request) -> Response:
        recursive = request.query_params.get("recursive", "").lower() in ("true", "1")
        return _tree(model, request.path_params.get("folder", ""), recursive)

    @at_revision
    def file(request: Request) -> Response:
        file = next((file for file in model.files if file.path == request.path_params["path"]), None)
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
        Route(about + "/auth-check", lambda request: Response(headers={"X-Repo-Commit": model.revision})),
        Route(about + "/{rest:path}", lambda request: error(404, "", "Not found")),
        Route(f"/{model.repo_id}/resolve/{{revision}}/{{path:path}}", file),
    ]


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
            entries[path] = {"type": "directory", "path": path, "size": 0, "oid": git_blob_id(path.encode())}
        if recursive or len(parts) == 1:
            facts = {"type": "file", "path": file.path, "size": file.size, "oid": file.blob_id}
            entries[file.path] = facts | _lfs(file, "oid")
    return _json(list(entries.values()), model) if entries else _no_entry(model)


def _lfs(file: ServedFile, digest: str) -> dict[str, Any]:
    """What is said of a file in Git LFS beyond the others, its sha256 under the name `digest`."""
    facts = {digest: file.sha256, "size": file.size, "pointerSize": len(pointer(file))}
    return {"lfs": facts} if file.lfs else {}


def _json(value: Any, model: ServedModel) -> Response:
    return JSONResponse(value, headers={"X-Repo-Commit": model.revision})


def error(status: int, code: str, message: str) -> Response:
    """An error as the Hub words it. `code` is its X-Error-Code, or ""; never put what a client sent into `message`."""
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return JSONResponse({"error": message}, status, headers)


def no_model() -> Response:
    return error(404, "RepoNotFound", "Repository not found")


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
    served = []
    for file in files:
        lfs = file.size > LFS_SIZE or file.path.endswith(LFS_SUFFIXES)
        content = pointer(file) if lfs else (folder / file.path).read_bytes()
        served.append(ServedFile(file.path, file.size, file.sha256, git_blob_id(content), lfs))
    return ServedModel(repo_id, revision, folder, tuple(served))


def pointer(file: ModelFile | ServedFile) -> bytes:
    """What git holds in place of an LFS file (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n".encode()


def send_file(
    model: ServedModel, file: ServedFile, headers: dict[str, str], media_type: str = "application/octet-stream"
) -> Response:
    """The regular file of that size that was listed, or the part of it that is asked for.

    Below the model's folder no symbolic link is followed.
    """
    path = model.folder.resolve() / file.path
    try:
        if path.resolve(strict=True) == path and path.is_file():
            content = path.open("rb", buffering=0)
            if os.fstat(content.fileno()).st_size == file.size:
                return FilePart(content, {"ETag": file.etag, **headers}, media_type)
            content.close()
    except OSError as fault:
        if fault.errno in (errno.EMFILE, errno.ENFILE):  # that says nothing of this file
            return error(503, "", "This server has as many files open as it may. Ask again in a moment")
    return error(500, "", "The file is no longer whole on this server")
