"""One Request -> one Completion, whichever the method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from kit.engines import devices, imports, llama_server, llamacpp_engine, memory, methods, torch_engine
from kit.engines.devices import Device
from kit.engines.request import Completion, Engine, Request
from kit.environment import machine
from kit.environment.machine import Machine
from kit.errors import KitError, WrongUsage
from kit.models import folder as model_folder
from kit.models import gguf_files
from kit.models.gguf_files import Quant
from kit.models.registry import Model

# Bytes that a run holds beside the weights (docs/measurements.md).
LIBRARIES_MEMORY = {"pipeline": 450_000_000, "manual": 450_000_000, "llamacpp": 250_000_000}


def complete(
    request: Request,
    on_text: Callable[[str], None] = lambda text: None,
    on_device: Callable[[Device], None] = lambda device: None,
    on_progress: gguf_files.Progress = lambda what, share: None,
) -> Completion:
    """Completes the prompt. `on_device` is told the device before the weights are read, `on_text` the text as it comes,
    and `on_progress` how far a GGUF file is that has to be written first: its time is no part of the run's.

    Raises KitError where the model is not whole, does not fit, or the device cannot run it; WrongUsage for a request
    that no machine could fulfil.
    """
    started = time.perf_counter()
    _validate(request)
    model_folder.check(request.model)
    quant = gguf_files.choose(request.model, request.quant) if request.method == methods.LLAMACPP else None
    if quant:
        device = devices.choose_for_llamacpp(request.device, quant)
        if not gguf_files.is_here(request.model, quant):
            llamacpp_engine.read_prompt(request)  # one that does not fit has nothing written for it
        if gguf_files.ensure(request.model, quant, on_progress):
            started = time.perf_counter()
    else:
        checkpoint_dtype = torch_engine.checkpoint_dtype(request.model)
        device = devices.choose(request.device, request.dtype, checkpoint_dtype)
    on_device(device)
    _require_memory(request, device, quant, machine.this())
    if quant:
        llama_server.import_all()
    else:
        imports.import_all()
    imported = time.perf_counter()
    try:
        engine = llamacpp_engine.load(request, device, quant.path) if quant else torch_engine.load(request, device)
        try:
            return _complete(request, engine, started, imported, on_text)
        finally:
            engine.close()
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate" in str(error):
            raise KitError(
                f"{request.model.name} does not fit into the memory of {device.name}: {str(error).splitlines()[0]}",
                "close other programs, ask for fewer MAX_NEW_TOKENS, or: make run MODEL=starter",
            ) from error
        raise


def _validate(request: Request) -> None:
    if request.method not in methods.NAMES:
        raise WrongUsage(f"METHOD={request.method} is unknown. Valid: {', '.join(methods.NAMES)}.")
    methods.check_format(request.method, request.dtype, request.quant)
    if not request.prompt:
        raise WrongUsage("the prompt is empty.", 'make run PROMPT="The capital of France is"')
    if request.max_new_tokens < 1:
        raise WrongUsage(f"MAX_NEW_TOKENS={request.max_new_tokens}: at least 1 token is needed.")
    if not 0 <= request.temperature < math.inf:
        raise WrongUsage(f"TEMPERATURE={request.temperature}: 0 is greedy decoding, above 0 is sampling.")


def _require_memory(request: Request, device: Device, quant: Quant | None, here: Machine) -> None:
    """Raises KitError in a container that is too small: there is no swap, and the end would be one word, Killed."""
    weights = quant.path.stat().st_size if quant else _weights(request.model, device)
    needed = weights + LIBRARIES_MEMORY[request.method]
    if here.container and here.memory is not None and here.memory < needed:
        raise KitError(
            f"{request.model.name} in {device.dtype} needs {needed / 1e9:.2f} GB of memory, and this container has "
            f"{here.memory / 1e9:.2f} GB.",
            f"make docker-run MEMORY={needed * 12 // 10**10 + 1}g  (Docker Desktop first: Settings, Resources, Memory)"
            + ("" if request.model.name == "starter" else "\n  or: make docker-run MODEL=starter"),
        )


def _weights(model: Model, device: Device) -> int:
    """Bytes of the weights in the device's number format."""
    widths = torch_engine.WIDTHS
    checkpoint_dtype = torch_engine.checkpoint_dtype(model)
    return int(model.weights * widths.get(device.dtype, 2) / widths.get(checkpoint_dtype, 2))


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
        device=engine.device,
        dtype=engine.dtype,
        quant=engine.quant,
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
    )
