"""What methods 1 and 2 share: transformers on torch, from the same folder, on any device.

Both read the weights straight onto the device (`device_map`). `pipeline(device="mps")` and `.to("mps")` load them on
the CPU first and copy: that is the memory pressure that the kit's origin measured on MPS.
"""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kit.engines import devices, imports, memory, threads
from kit.engines.devices import Device, Obstacle
from kit.engines.engine import Engine, Generated, Position
from kit.engines.request import Request
from kit.environment.machine import Machine
from kit.errors import Command, KitError
from kit.formats import llama, safetensors
from kit.models import folder as model_folder
from kit.models.registry import Model

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

WIDTHS = {"bfloat16": 2, "float16": 2, "float32": 4}  # bytes of a number
FORMATS = ("auto", *WIDTHS)


class TorchEngine(Engine):
    """A model through transformers. A method says how it is opened, and how a prompt is completed."""

    framework = "PyTorch"
    setting = "dtype"
    packages = imports.PACKAGES
    libraries_memory = 450_000_000
    loaded: PreTrainedModel

    @classmethod
    def formats(cls, model: Model) -> tuple[str, ...]:
        return FORMATS

    def choose(self, device: str, number_format: str) -> Device:
        devices.require_known("DTYPE", number_format, FORMATS)
        checkpoint = model_folder.checkpoint_dtype(self.model)
        name, reason = devices.choose(device, obstacle)
        if number_format == "auto":
            return Device(name, checkpoint, reason, "the checkpoint's own")
        return Device(name, number_format, reason, "asked for")

    @abstractmethod
    def open(self) -> PreTrainedModel:
        """Reads the weights, straight onto the device."""

    @abstractmethod
    def complete(self, request: Request, config: GenerationConfig, stream: TokenStream) -> None:
        """Completes the request's prompt, a token at a time into the stream."""

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        self.import_libraries()
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model.folder)

    @property
    def where(self) -> dict[str, Any]:
        """How transformers is told the number format and the device."""
        return {"dtype": self.device.number_format, "device_map": {"": self.device.name}}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))

    def weights_bytes(self) -> int:
        checkpoint = WIDTHS.get(model_folder.checkpoint_dtype(self.model), 2)
        return int(self.model.weights * WIDTHS[self.device.number_format] / checkpoint)

    def bytes_per_token(self) -> int:
        width = WIDTHS[self.device.number_format]
        tensors = safetensors.read_headers(model_folder.weights(self.model))
        return llama.bytes_per_token({name: tensor.count * width for name, tensor in tensors.items()})

    def import_libraries(self) -> None:
        imports.import_all()

    def load(self, context: int) -> None:
        self.import_libraries()
        asked = self.device.number_format
        converts = asked != model_folder.checkpoint_dtype(self.model)
        if self.device.name == "mps" and converts:
            # Converting while loading in parallel can crash on MPS: huggingface/transformers#48029.
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
        memory.release_code()
        with memory.read_tensor_by_tensor() if converts and self.device.name == "cpu" else nullcontext():
            self.loaded = self.open()
        ran = str(self.loaded.dtype).removeprefix("torch.")
        if ran != asked:
            raise KitError(f"{asked} was asked for, and {self.model.name} was loaded in {ran}.", "please report it")
        if self.device.name == "mps":
            import torch

            # The GPU works on after the calls have returned: a load ends when it is done, and so does its time.
            torch.mps.synchronize()

    def generate(self, request: Request, on_text: Callable[[str], None]) -> Generated:
        import torch

        self.fit(request)
        stream = TokenStream(self.tokenizer, on_text)
        torch.manual_seed(request.seed)
        self.complete(request, generation_config(request, self.loaded.generation_config), stream)
        times = stream.times
        return Generated(stream.prompt_ids or [], stream.token_ids, stream.text, times[0], 1, times[-1])

    def logprobs(self, ids: Sequence[int], first: int) -> list[Position]:
        return measure(self.loaded, ids, first)

    def device_memory(self) -> int | None:
        if self.device.name != "mps":
            return None
        import torch

        return int(torch.mps.driver_allocated_memory())

    def facts(self) -> dict[str, Any]:
        import torch

        found = {"version": torch.__version__, "threads": torch.get_num_threads()}
        found |= {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "mps": torch.backends.mps.is_built()}
        return {"torch": found}

    def close(self) -> None:
        self.__dict__.pop("loaded", None)


def obstacle(here: Machine) -> Obstacle | None:
    """What torch finds in the way of MPS."""
    threads.before_torch()
    import torch

    run_cpu = (Command("run", DEVICE="cpu"),)
    if not torch.backends.mps.is_built():
        return "this torch was built without MPS", (Command("clean setup"),)
    if not torch.backends.mps.is_available():
        return devices.no_metal("torch", here)
    try:
        right = (torch.ones(2, device="mps") * 2).sum().item() == 4.0
    except RuntimeError as error:
        return f"the first operation on the GPU failed: {str(error).splitlines()[0]}", run_cpu
    return None if right else ("the first operation on the GPU gave a wrong number", run_cpu)


def measure(model: PreTrainedModel, ids: Sequence[int], first: int) -> list[Position]:
    """What a loaded model makes of each token from position `first` on, in one pass."""
    import torch

    tokens = torch.tensor([list(ids)], device=model.device)
    # The token at position p is foretold at p - 1; the last one foretells what is not compared.
    wanted = len(ids) - first
    with torch.inference_mode():
        logits = model(tokens, use_cache=False, logits_to_keep=wanted + 1).logits[0, :-1].float().cpu()
    taken = torch.tensor(list(ids[first:]))
    own = logits.gather(1, taken[:, None])[:, 0]
    logprobs = own - logits.logsumexp(1)
    others = logits.scatter(1, taken[:, None], float("-inf")).max(1).values
    columns = logprobs.tolist(), logits.argmax(1).tolist(), (own - others).tolist()
    return [Position(*row) for row in zip(*columns, strict=True)]


def generation_config(request: Request, own: GenerationConfig) -> GenerationConfig:
    """Greedy, or sampling from the whole distribution. The model's own sampling defaults (Llama: 0.6, top-p 0.9) are
    left out on purpose: what was asked for is what runs."""
    from transformers import GenerationConfig

    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    config = GenerationConfig(
        max_new_tokens=request.max_new_tokens,
        min_new_tokens=request.max_new_tokens if request.ignore_eos else None,
        do_sample=request.temperature > 0,
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=ends[0] if own.pad_token_id is None else own.pad_token_id,
    )
    if request.temperature > 0:
        # A logit divided by less than 1e-37 is infinite in float32. From 1e-5 down the likeliest token is certain.
        config.temperature, config.top_k, config.top_p = max(request.temperature, 1e-5), 0, 1.0
    return config


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
        self.text = ""
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

    def _say(self, piece: str | None) -> None:
        if piece:
            self.text += piece
            self._on_text(piece)
