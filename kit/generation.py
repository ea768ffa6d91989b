"""One Request -> one Completion, whichever the method."""

from __future__ import annotations

import gc
import importlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kit import devices, machine, methods, model_folder
from kit.devices import Device
from kit.errors import KitError, WrongUsage
from kit.registry import Model

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

# The methods would import the last three at first use, and their time would pass for the time of a load.
LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "transformers.models.llama.modeling_llama",
    "transformers.pipelines.text_generation",
)
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "huggingface_hub")


@dataclass(frozen=True)
class Request:
    """What to complete and how. `temperature` 0 is greedy decoding; above it, tokens are drawn, seeded by `seed`."""

    model: Model
    prompt: str
    method: str = "pipeline"
    device: str = "auto"
    dtype: str = "auto"
    max_new_tokens: int = 50
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """What came of a Request. Times in seconds, sizes in bytes; None where there is nothing to measure.

    `first_token_s` runs from the call of generate to its first token (so it holds the prompt's own pass),
    `decode_tokens_per_s` counts the tokens after the first, `total_s` is all of it, imports included.
    """

    model: str
    repo_id: str | None
    revision: str
    method: str
    device: str
    dtype: str
    quant: str | None
    seed: int
    prompt: str
    text: str
    prompt_tokens: int
    new_tokens: int
    token_ids: list[int]
    import_s: float
    load_s: float
    first_token_s: float
    decode_tokens_per_s: float | None
    total_s: float
    peak_rss_bytes: int
    device_memory_bytes: int | None
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def complete(
    request: Request,
    on_text: Callable[[str], None] = lambda text: None,
    on_device: Callable[[Device], None] = lambda device: None,
) -> Completion:
    """Completes the prompt. `on_device` is told the device before the weights are read, `on_text` the text as it comes.

    Raises KitError where the model is not whole, does not fit, or the device cannot run it; WrongUsage for a request
    that no machine could fulfil.
    """
    started = time.perf_counter()
    _validate(request)
    model_folder.check(request.model)
    device = devices.choose(request.device, request.dtype, checkpoint_dtype(request.model))
    on_device(device)
    import_libraries()
    imported = time.perf_counter()
    try:
        return _complete(request, device, started, imported, on_text)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate" in str(error):
            raise KitError(
                f"{request.model.name} does not fit into the memory of {device.name}: {str(error).splitlines()[0]}",
                "close other programs, ask for fewer MAX_NEW_TOKENS, or: make run MODEL=starter",
            ) from error
        raise


def import_libraries() -> None:
    """Imports what a run needs. Nothing that it does may reach the network: models load from folders."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    # A million objects arrive and stay: looking for garbage among them takes 0.7 of the 2.9 s, for nothing.
    gc.disable()
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if not os.environ.get("KIT_DEBUG"):
        transformers.utils.logging.set_verbosity_error()


def checkpoint_dtype(model: Model) -> str:
    """The number format that the weights were saved in, as torch names it."""
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    return config.get("dtype") or config.get("torch_dtype") or "float32"


def _validate(request: Request) -> None:
    if request.method not in methods.NAMES:
        raise WrongUsage(f"METHOD={request.method} is unknown. Valid: {', '.join(methods.NAMES)}.")
    if not request.prompt:
        raise WrongUsage("the prompt is empty.", 'make run PROMPT="The capital of France is"')
    if request.max_new_tokens < 1:
        raise WrongUsage(f"MAX_NEW_TOKENS={request.max_new_tokens}: at least 1 token is needed.")
    if request.temperature < 0:
        raise WrongUsage(f"TEMPERATURE={request.temperature}: 0 is greedy decoding, above 0 is sampling.")


def _complete(
    request: Request, device: Device, started: float, imported: float, on_text: Callable[[str], None]
) -> Completion:
    import torch

    from kit.token_stream import TokenStream

    if device.name == "mps" and device.dtype != checkpoint_dtype(request.model):
        # Converting while loading in parallel can crash on MPS: huggingface/transformers#48029.
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    loaded = methods.LOADERS[request.method](request.model.folder, device)
    machine.release_free_memory()
    ready = time.perf_counter()
    _check_room(request, loaded.tokenizer)

    stream = TokenStream(loaded.tokenizer, on_text)
    torch.manual_seed(request.seed)
    asked = time.perf_counter()
    loaded.generate(request.prompt, _generation_config(request, loaded.model.generation_config), stream)
    decode_s = stream.times[-1] - stream.times[0]
    return Completion(
        model=request.model.name,
        repo_id=request.model.repo_id,
        revision=request.model.revision,
        method=request.method,
        device=device.name,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        quant=None,
        seed=request.seed,
        prompt=request.prompt,
        text=stream.text,
        prompt_tokens=len(stream.prompt_ids or ()),
        new_tokens=len(stream.token_ids),
        token_ids=stream.token_ids,
        import_s=imported - started,
        load_s=ready - imported,
        first_token_s=stream.times[0] - asked,
        decode_tokens_per_s=(len(stream.token_ids) - 1) / decode_s if decode_s else None,
        total_s=time.perf_counter() - started,
        peak_rss_bytes=machine.peak_rss_bytes(),
        device_memory_bytes=torch.mps.driver_allocated_memory() if device.name == "mps" else None,
        versions=versions(),
    )


def _check_room(request: Request, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises WrongUsage where prompt and completion do not fit into the context: nothing is cut off silently."""
    tokens = len(tokenizer(request.prompt)["input_ids"])
    room = request.model.context - tokens
    if room < 1:
        raise WrongUsage(
            f"the prompt is {tokens} tokens long, and the context of {request.model.name} holds "
            f"{request.model.context}, prompt and completion together.",
            "shorten the prompt",
        )
    if request.max_new_tokens > room:
        raise WrongUsage(
            f"the prompt ({tokens} tokens) and MAX_NEW_TOKENS={request.max_new_tokens} do not fit into the context of "
            f"{request.model.name} ({request.model.context} tokens).",
            f"make run MAX_NEW_TOKENS={room}, or a shorter prompt",
        )


def _generation_config(request: Request, own: GenerationConfig) -> GenerationConfig:
    """Greedy, or sampling from the whole distribution. The model's own sampling defaults (Llama: 0.6, top-p 0.9) are
    left out on purpose: what was asked for is what runs."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=request.max_new_tokens,
        do_sample=request.temperature > 0,
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id if own.pad_token_id is not None else _first(own.eos_token_id),
    )
    if request.temperature > 0:
        config.temperature, config.top_k, config.top_p = request.temperature, 0, 1.0
    return config


def _first(token_id: int | list[int] | None) -> int | None:
    return token_id[0] if isinstance(token_id, list) else token_id


def versions() -> dict[str, str]:
    """Python's and each package's version that the outcome depends on."""
    import platform
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
