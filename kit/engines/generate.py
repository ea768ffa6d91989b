"""One Request -> one Completion, whichever the method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kit.engines import imports, memory, methods, threads
from kit.engines.devices import Device
from kit.engines.engine import Engine, Generated
from kit.engines.request import Completion, Request
from kit.environment import machine
from kit.environment.machine import Machine
from kit.errors import Command, KitError, WrongUsage
from kit.files import Progress, silent
from kit.models import folder as model_folder


def complete(
    request: Request,
    on_text: Callable[[str], None] = lambda text: None,
    on_device: Callable[[Device], None] = lambda device: None,
    on_progress: Progress = silent,
) -> Completion:
    """Completes the prompt. `on_device` is told the device before the weights are read, `on_text` the text as it comes,
    and `on_progress` how far a file is that has to be written first: its time is no part of the run's.

    Raises KitError where the model is not whole, does not fit, or the device cannot run it; WrongUsage for a request
    that no machine could fulfil.
    """
    started = time.perf_counter()
    engine = prepared(request)
    if engine.needs_file():
        engine.fit(request)  # a prompt that does not fit has nothing written for it
        engine.write_file(on_progress)
        started = time.perf_counter()
    on_device(engine.device)
    engine.import_libraries()
    imported = time.perf_counter()
    with _in_memory(engine):
        engine.load(len(engine.fit(request)) + request.max_new_tokens)
        return _complete(request, engine, started, imported, on_text)


@contextmanager
def loaded(
    request: Request,
    context: int,
    on_device: Callable[[Device], None] = lambda device: None,
    on_progress: Progress = silent,
    slots: int = 1,
) -> Iterator[Engine]:
    """The request's engine for many prompts like it, of up to `context` tokens each, `slots` of them at a time. Raises
    as `complete` does, and where so many slots do not fit into memory."""
    engine = prepared(request)
    if slots > 1:
        what = f"{engine.model.name} with {slots} slots of {context} tokens"
        hint = Command("batch", SLOTS=1), ", or close other programs"
        memory.require_free(what, engine.memory_needed(context, slots), machine.this(), hint)
    engine.write_file(on_progress)
    on_device(engine.device)
    engine.import_libraries()
    with _in_memory(engine):
        engine.load(context, slots)
        yield engine


def prepared(request: Request) -> Engine:
    """The request's engine, with nothing loaded or written yet. Raises as `complete` does."""
    _validate(request)
    model_folder.check(request.model)
    engine = methods.prepare(request)
    _require_memory(engine, machine.this())
    return engine


@contextmanager
def _in_memory(engine: Engine) -> Iterator[None]:
    """Within this the engine is used, and closed behind it; memory that ran out is said."""
    try:
        with engine:
            yield
    except (MemoryError, RuntimeError) as error:
        if memory.ran_out(error):
            raise KitError(
                f"{engine.model.name} does not fit into the memory of {engine.device.name}: "
                f"{(str(error).splitlines() or ['no further word'])[0]}",
                "close other programs, ask for fewer MAX_NEW_TOKENS, or: ",
                Command("run", MODEL="starter"),
            ) from error
        raise


def prepare(request: Request, on_progress: Progress = silent) -> None:
    """Writes the file that the request's engine needs, where it is not there. Raises as `complete` does."""
    model_folder.check(request.model)
    methods.prepare(request).write_file(on_progress)


def _validate(request: Request) -> None:
    methods.check(request)
    if not request.prompt:
        raise WrongUsage("the prompt is empty.", Command("run", PROMPT="The capital of France is"))
    if request.max_new_tokens < 1:
        raise WrongUsage(f"MAX_NEW_TOKENS={request.max_new_tokens}: at least 1 token is needed.")
    if not 0 <= request.temperature < math.inf:
        raise WrongUsage(f"TEMPERATURE={request.temperature}: 0 is greedy decoding, above 0 is sampling.")


def _require_memory(engine: Engine, here: Machine) -> None:
    """Raises KitError in a container that is too small: there is no swap, and the end would be one word, Killed."""
    model, needed = engine.model, engine.weights_bytes() + engine.libraries_memory
    if here.container and here.memory is not None and here.memory < needed:
        raise KitError(
            f"{model.name} in {engine.device.number_format} needs {needed / 1e9:.2f} GB of memory, and this container "
            f"has {here.memory / 1e9:.2f} GB.",
            Command("docker-run", MEMORY=f"{needed * 12 // 10**10 + 1}g"),
            "  (Docker Desktop first: Settings, Resources, Memory)",
            *(() if model.name == "starter" else ("\n  or: ", Command("run", MODEL="starter"))),
        )


def _complete(
    request: Request, engine: Engine, started: float, imported: float, on_text: Callable[[str], None]
) -> Completion:
    asked = time.perf_counter()
    came = engine.generate(request, on_text)
    return Completion(
        model=request.model.name,
        repo_id=request.model.repo_id,
        revision=request.model.revision,
        method=request.method,
        device=engine.device.name,
        **engine.number_formats,
        seed=request.seed,
        prompt=request.prompt,
        text=came.text,
        prompt_tokens=len(came.prompt_ids),
        new_tokens=len(came.token_ids),
        token_ids=came.token_ids,
        import_s=imported - started,
        load_s=asked - imported,
        first_token_s=came.first_at - asked,
        decode_tokens_per_s=came.decode_tokens_per_s,
        total_s=time.perf_counter() - started,
        peak_rss_bytes=memory.peak_rss_bytes(),
        device_memory_bytes=engine.device_memory(),
        versions=imports.versions(engine.packages),
        facts={**engine.facts(), "threads": threads.record()},
        notes=tuple(_surprises(request, engine, came)),
    )


def _surprises(request: Request, engine: Engine, came: Generated) -> Iterator[str]:
    """What a newcomer would not expect of a prompt, and may not see."""
    begin = engine.examined.begin
    if begin is not None and came.prompt_ids[:2] == [begin, begin]:
        token = engine.decode([begin])
        yield f"the prompt begins with {token}, and the tokenizer puts one in front of every prompt: two of them now"
    if request.prompt.endswith("\n"):
        yield "the prompt ends with a line end, which is a part of it: the model goes on in a new line"
    if not came.text and came.token_ids and came.token_ids[-1] in engine.examined.ends:
        yield "the model ended the text at once: a beginning for it to go on with works better than a question"
