"""What a Hub says of its models: the part of its HTTP interface that huggingface_hub's downloads ask for.

Only what is listed for a model can be had: a request is looked up, never turned into a path. Errors carry X-Error-Code,
from which the client makes its exceptions. Nothing is offered of Xet, so clients download over plain HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, unquote

from kit import file_answer
from kit.http_messages import Answer, Request, Text
from kit.served_models import ServedFile, ServedModel, git_id, open_file, pointer


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
        answer = file_answer.part_of(request, file.size, file.etag, lambda: open_file(model, file), headers)
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
