"""Methods 1 and 2, as an engine: transformers on torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from kit.engines import imports, memory, methods
from kit.engines.devices import Device
from kit.engines.request import Engine, Generated, Request, check_room
from kit.models.registry import Model

if TYPE_CHECKING:
    from transformers import GenerationConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a number


def checkpoint_dtype(model: Model) -> str:
    """The number format that the weights were saved in, as torch names it."""
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    return config.get("dtype") or config.get("torch_dtype") or "float32"


def load_model(model: Model, method: str, device: Device) -> methods.Loaded:
    """The model in memory, on the device and in its number format, through one of the methods."""
    if device.name == "mps" and device.dtype != checkpoint_dtype(model):
        # Converting while loading in parallel can crash on MPS: huggingface/transformers#48029.
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    memory.release_code()
    converts = device.dtype != checkpoint_dtype(model)
    with _read_tensor_by_tensor() if converts and device.name == "cpu" else nullcontext():
        loaded = methods.LOADERS[method](model.folder, device)
    if device.name == "mps":
        import torch

        # The GPU works on after the calls have returned: a load ends when it is done, and so does its time.
        torch.mps.synchronize()
    memory.release_free_memory()
    return loaded


@contextmanager
def _read_tensor_by_tensor() -> Iterator[None]:
    """Within this, transformers reads checkpoints, as it does for MPS by itself, in place of mapping them.

    The pages of a mapped file stay beside the copies in another number format that are made of them: 250 MB more at the
    peak with the starter. Transformers chooses by platform and device, and has no setting for it.
    """
    from transformers import modeling_utils

    name = "safe_open"
    mapping = getattr(modeling_utils, name)
    setattr(modeling_utils, name, lambda *path, **options: mapping(*path, **{**options, "backend": "pread"}))
    try:
        yield
    finally:
        setattr(modeling_utils, name, mapping)


def load(request: Request, device: Device) -> Engine:
    """An engine for the request. Raises WrongUsage where the prompt does not fit into the context."""
    import torch

    loaded = load_model(request.model, request.method, device)
    check_room(request, len(loaded.tokenizer(request.prompt)["input_ids"]))

    def generate(request: Request, on_text: Callable[[str], None]) -> Generated:
        stream = TokenStream(loaded.tokenizer, on_text)
        torch.manual_seed(request.seed)
        loaded.generate(request.prompt, generation_config(request, loaded.model.generation_config), stream)
        times = stream.times
        return Generated(stream.prompt_ids or [], stream.token_ids, stream.text, times[0], 1, times[-1])

    return Engine(
        device=device.name,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        quant=None,
        packages=imports.PACKAGES,
        generate=generate,
        device_memory=torch.mps.driver_allocated_memory if device.name == "mps" else lambda: None,
    )


def generation_config(request: Request, own: GenerationConfig) -> GenerationConfig:
    """Greedy, or sampling from the whole distribution. The model's own sampling defaults (Llama: 0.6, top-p 0.9) are
    left out on purpose: what was asked for is what runs."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=request.max_new_tokens,
        min_new_tokens=request.max_new_tokens if request.ignore_eos else None,
        do_sample=request.temperature > 0,
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id if own.pad_token_id is not None else _first(own.eos_token_id),
    )
    if request.temperature > 0:
        # A logit divided by less than 1e-37 is infinite in float32. From 1e-5 down the likeliest token is certain.
        config.temperature, config.top_k, config.top_p = max(request.temperature, 1e-5), 0, 1.0
    return config


def _first(token_id: int | list[int] | None) -> int | None:
    return token_id[0] if isinstance(token_id, list) else token_id


# --- The tokens of one completion as they arrive ----------------------------------------------------------------------


class TokenStream:
    """A streamer for transformers' generate(): it is put() the prompt's ids first, then each new token.

    A token may end in the middle of a character (an emoji is several tokens): its text waits for the rest.
    generate() hands over ids that it has copied to the CPU, so on MPS the clock is read after the GPU is done.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._on_text = on_text
        self._pieces: list[str] = []
        self.prompt_ids: list[int] | None = None
        self.token_ids: list[int] = []
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        ids = value.flatten().tolist()
        if self.prompt_ids is None:
            self.prompt_ids = ids
            return
        for token_id in ids:
            self.times.append(time.perf_counter())
            self.token_ids.append(token_id)
            self._say(self._decoder.step(self._tokenizer.backend_tokenizer, token_id))

    def end(self) -> None:
        """Says what is left: the bytes of a character that the last token did not finish."""
        whole = self._tokenizer.backend_tokenizer.decode(self.token_ids, skip_special_tokens=True)
        self._say(whole[len(self.text) :])

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def _say(self, piece: str | None) -> None:
        if piece:
            self._pieces.append(piece)
            self._on_text(piece)


def of_torch() -> dict[str, Any]:
    """What torch says of itself; imports it."""
    import torch

    return {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mps": torch.backends.mps.is_built(),
    }
