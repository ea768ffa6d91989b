"""`make serve`: what a server takes, where it is reached and under which key, and what its page is told."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.engines import memory
from kit.engines.llama_server import STEP, Listening, LlamaServer
from kit.engines.llamacpp_engine import LlamacppEngine
from kit.environment.machine import Machine
from kit.errors import Command, WrongUsage, keep_secret
from kit.files import Progress, silent
from kit.models import folder as model_folder
from kit.models import licence
from kit.models.registry import Model
from kit.net import address
from kit.paths import ROOT

PAGE = Path(__file__).parent / "page"
CONTEXT = 4096  # tokens of a slot, where nobody says
# In a header and in an address as it is: RFC 3986's unreserved characters, without two that end sentences.
KEY = re.compile(r"[A-Za-z0-9_-]{16,}")
EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Ready:
    """A server that can be started: `context` is a slot's, in tokens."""

    engine: LlamacppEngine
    context: int
    slots: int

    @property
    def model(self) -> Model:
        return self.engine.model


def prepare(
    model: Model,
    device: str,
    quant: str,
    slots: int,
    context: int | None,
    here: Machine,
    on_progress: Progress = silent,
) -> Ready:
    """Settles what is served and writes the GGUF file where it is missing. Raises KitError where the model is not
    whole, or does not fit into memory with so many slots; WrongUsage for a context that the model has not."""
    model_folder.check(model)
    engine = LlamacppEngine(model, device, quant)
    most = model.context // STEP * STEP or STEP
    if context is not None and context > model.context:
        raise WrongUsage(
            f"CONTEXT={context}: the context of {model.name} holds {model.context} tokens.",
            Command("serve", CONTEXT=most),
        )
    rounded = -(-context // STEP) * STEP if context else min(CONTEXT, most)
    ready = Ready(engine, rounded, slots)
    require_memory(ready, here)
    engine.write_file(on_progress)
    return ready


def require_memory(ready: Ready, here: Machine) -> None:
    """Raises KitError where it does not fit."""
    memory.require_free(
        f"{ready.model.name} with {ready.slots} slot{'s' * (ready.slots > 1)} of {ready.context} tokens",
        ready.engine.memory_needed(ready.context, ready.slots),
        here,
        (Command("serve", MODEL=ready.model.name, SLOTS=1, CONTEXT=STEP), ", or close other programs"),
    )


def key() -> str:
    """SERVE_KEY, or a random one. Raises WrongUsage for one that is too short, or that an address would not hold."""
    given = os.environ.get("SERVE_KEY") or secrets.token_urlsafe(24)
    keep_secret(given)  # of all that goes to stderr
    if not KEY.fullmatch(given):
        raise WrongUsage(
            "SERVE_KEY has fewer than 16 characters, or others than letters, digits, - and _.",
            "change it in .env, or leave it out: each start then makes its own",
        )
    return given


def start(ready: Ready, host: str, port: int, secret: str) -> LlamaServer:
    """Loads the model and listens. Raises KitError where it cannot: the port is looked at before anything is loaded."""
    address.require_port(host, port, lambda other: Command("serve", PORT=other))
    listening = Listening(host, port, secret, ready.model.name, PAGE, about(ready))
    return ready.engine.listen(ready.context, ready.slots, listening)


def about(ready: Ready) -> dict[str, Any]:
    """What the page is told: the model, and what its licence asks to show."""
    model = ready.model
    duty = licence.DUTIES.get(model.licence)
    where = ", ".join(f"models/{model.foundation.name}/{path}" for path in model.foundation.licence_files)
    return {
        "model": model.name,
        "title": model.title,
        "kind": model.kind,
        "base": model.base.name if model.base else None,
        "format": ready.engine.device.number_format,
        "device": ready.engine.device.name,
        "context": ready.context,
        "slots": ready.slots,
        "begin": ready.engine.examined.begin,
        "ends": list(ready.engine.examined.ends),
        "licence": model.licence,
        "licence_files": where,
        "shown": duty.shown if duty else "",
    }


def url(host: str, port: int) -> str:
    """The address that others type: for a server that listens everywhere, this machine's own in its network."""
    name = (address.of_this_machine() or "127.0.0.1") if host in EVERYWHERE else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


@contextmanager
def header_file(folder: Path, port: int, secret: str) -> Iterator[Path]:
    """The header with the key, for `curl -H @…`: in a file that only its owner reads, and that goes with the server."""
    path = folder / f".serve-{port}.header"
    path.unlink(missing_ok=True)  # of one that was killed
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"Authorization: Bearer {secret}\n")
        yield path
    finally:
        path.unlink(missing_ok=True)


def header_folder() -> Path:
    """The clone; in the container, a folder that is lent to it."""
    return Path(os.environ.get("KIT_SERVE_FOLDER") or ROOT)
