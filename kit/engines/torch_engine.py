"""What methods 1 and 2 share: transformers on torch, from the same folder, on any device.

Both read the weights straight onto the device (`device_map`). `pipeline(device="mps")` and `.to("mps")` load them on
the CPU first and copy: that is the memory pressure that the kit's origin measured on MPS.
"""

from __future__ import annotations

import copy
import importlib
import logging
import os
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from kit.engines import adapters, devices, imports, memory, threads
from kit.engines.devices import Device, Obstacle
from kit.engines.engine import Engine, Generated, Position, up_to_the_first
from kit.engines.request import Request
from kit.environment.machine import Machine
from kit.errors import Command, KitError
from kit.formats import llama, safetensors
from kit.models import examine
from kit.models.examine import Examination
from kit.models.registry import Model

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

WIDTHS = {"bfloat16": 2, "float16": 2, "float32": 4}  # bytes of a number
FORMATS = ("auto", *WIDTHS)
AHEAD = 16  # batches' worth of prompts that are looked through for those of like length


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
        name, reason = devices.choose(device, obstacle)
        if number_format == "auto":
            return Device(name, self.examined.dtype, reason, "the checkpoint's own")
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

        return AutoTokenizer.from_pretrained(self.model.foundation.folder)

    @property
    def where(self) -> dict[str, Any]:
        """How transformers is told the number format and the device."""
        return {"dtype": self.device.number_format, "device_map": {"": self.device.name}}

    @property
    def backend(self) -> Tokenizer:
        backend: Tokenizer = self.tokenizer.backend_tokenizer
        return backend

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def weights_bytes(self) -> int:
        tensors = safetensors.read_headers(examine.weights(self.model))
        return sum(tensor.count for tensor in tensors.values()) * WIDTHS[self.device.number_format]

    def bytes_per_token(self) -> int:
        width = WIDTHS[self.device.number_format]
        tensors = safetensors.read_headers(examine.weights(self.model))
        return llama.bytes_per_token({name: tensor.count * width for name, tensor in tensors.items()})

    def import_libraries(self) -> None:
        imports.import_all()
        if self.model.base:
            importlib.import_module("peft")

    def load(self, context: int, slots: int = 1) -> None:
        self.import_libraries()
        asked = self.device.number_format
        converts = asked != self.examined.dtype
        if self.device.name == "mps" and converts:
            # Converting while loading in parallel can crash on MPS: huggingface/transformers#48029.
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
        memory.release_code()
        with memory.read_tensor_by_tensor() if converts and self.device.name == "cpu" else nullcontext():
            self.loaded = self._opened()
        self._hold_against_request()
        if self.model.base:
            adapters.attach(self.loaded, self.model)
        if self.device.name == "mps":
            import torch

            # The GPU works on after the calls have returned: a load ends when it is done, and so does its time.
            torch.mps.synchronize()

    def _opened(self) -> PreTrainedModel:
        """What `open` gives; what transformers refuses, or reports of what it read, is an error."""
        with loading_reports() as reports:
            try:
                loaded = self.open()
            except KitError:
                raise
            except Exception as error:
                if memory.ran_out(error):
                    raise
                raise self._refused(reports or [str(error)]) from error
        if reports:
            raise self._refused(reports)
        return loaded

    def _refused(self, reports: list[str]) -> KitError:
        words = " ".join(" ".join(reports).split())[:500]
        return KitError(f"transformers does not load {self.model.name} as it is meant: {words}", "please report it")

    def _hold_against_request(self) -> None:
        """Raises KitError where other numbers are loaded, or elsewhere, than was asked for."""
        asked = self.device.number_format, self.device.name
        for tensor in self.loaded.parameters():
            ran = str(tensor.dtype).removeprefix("torch."), tensor.device.type
            if ran != asked:
                which = zip(asked, ran, strict=True)
                wanted, got = next((one, other) for one, other in which if one != other)
                what = f"{wanted} was asked for, and {self.model.name} was loaded in {got}."
                raise KitError(what, "please report it")

    def generate(self, request: Request, on_text: Callable[[str], None] = lambda text: None) -> Generated:
        import torch

        prompt_ids = self.fit(request)
        stream = TokenStream(self, prompt_ids, on_text)
        torch.manual_seed(request.seed)
        config = generation_config(request, self.examined)
        # generate() fills what a config leaves open from the model's own, which changes what was asked for.
        self.loaded.generation_config = copy.deepcopy(config)
        self.complete(request, config, stream)
        if stream.prompt_ids != prompt_ids:
            raise KitError(f"transformers was given the prompt, and took {stream.prompt_ids}.", "please report it")
        times = stream.times
        return Generated(prompt_ids, stream.token_ids, stream.text, times[0], 1, times[-1])

    def generate_all(self, requests: Iterable[Request], slots: int) -> Generator[tuple[int, Generated | KitError]]:
        if slots == 1:
            yield from super().generate_all(requests, 1)
            return
        waiting = enumerate(requests)
        while ahead := list(islice(waiting, slots * AHEAD)):
            ready: list[tuple[int, Request, list[int]]] = []
            for place, request in ahead:
                try:
                    if request.temperature > 0:  # torch has one source of chance for a whole batch
                        yield place, self.generate(request)
                    else:
                        ready.append((place, request, self.fit(request)))
                except KitError as error:
                    yield place, error
            # A batch is as long as its longest prompt, and takes as many steps as the longest completion.
            ready.sort(key=lambda each: (each[1].max_new_tokens, len(each[2])))
            for start in range(0, len(ready), slots):
                batch = ready[start : start + slots]
                came = self._together([(request, ids) for _, request, ids in batch])
                yield from zip((place for place, _, _ in batch), came, strict=True)

    def _together(self, batch: list[tuple[Request, list[int]]]) -> list[Generated]:
        """Greedy completions of several prompts in one pass a token, shorter ones filled up on their left."""
        import torch

        width, pad = max(len(ids) for _, ids in batch), self.examined.pad or 0
        filled = torch.tensor([[pad] * (width - len(ids)) + ids for _, ids in batch])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for _, ids in batch])
        config = generation_config(batch[-1][0], self.examined)
        self.loaded.generation_config = copy.deepcopy(config)
        whole = self.loaded.generate(
            filled.to(self.device.name), attention_mask=mask.to(self.device.name), generation_config=config
        )
        now = time.perf_counter()
        found = []
        for (request, ids), row in zip(batch, whole[:, width:].tolist(), strict=True):
            token_ids = up_to_the_first(self.examined.ends, row[: request.max_new_tokens])
            found.append(Generated(ids, token_ids, self.continuation(ids, token_ids), now, len(token_ids), now))
        return found

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


def generation_config(request: Request, examined: Examination) -> GenerationConfig:
    """Greedy, or sampling from the whole distribution, until one of the model's end tokens: what was asked for, whole.

    Nothing is left open for a library to fill, neither from the model's own settings (Llama: 0.6, top-p 0.9) nor from
    those of its makers: what was asked for is what runs.
    """
    from transformers import GenerationConfig

    ends = list(examined.ends)
    config = GenerationConfig(
        **{
            **GenerationConfig._get_default_generation_params(),
            "max_length": None,  # or it would warn that there are two
            "max_new_tokens": request.max_new_tokens,
            "min_new_tokens": request.max_new_tokens if request.ignore_eos else None,
            "do_sample": request.temperature > 0,
            "top_k": 0,
            "bos_token_id": examined.begin,
            "eos_token_id": ends or None,
            # Of one prompt nothing is padded; generate() wants to know all the same.
            "pad_token_id": examined.pad if examined.pad is not None else [*ends, 0][0],
        }
    )
    if request.temperature > 0:
        # A logit divided by less than 1e-37 is infinite in float32. From 1e-5 down the likeliest token is certain.
        config.temperature = max(request.temperature, 1e-5)
    return config


@contextmanager
def loading_reports() -> Iterator[list[str]]:
    """What transformers reports of a checkpoint's tensors in the block (missing, unexpected, of another shape), as it
    logs it; the screen does without."""
    reports: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "LOAD REPORT" in record.getMessage():
                reports.append(re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage()))

    logger, handler = logging.getLogger("transformers.modeling_utils"), Keep()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield reports
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


# --- The tokens of one completion as they arrive ----------------------------------------------------------------------


class TokenStream:
    """A streamer for transformers' generate(): it is put() the prompt's ids first, then each new token.

    A token may end in the middle of a character (an emoji is several tokens): its text waits for the rest.
    generate() hands over ids that it has copied to the CPU, so on MPS the clock is read after the GPU is done.
    """

    def __init__(self, engine: Engine, prompt_ids: list[int], on_text: Callable[[str], None]) -> None:
        self._engine = engine
        self._asked = prompt_ids
        # The text of a token is what it adds behind the ones from `_start` to `_said`, which have been said: alone, a
        # decoder may drop its first blank. (tokenizers' DecodeStream gives up where bytes that are tokens of their own
        # make no character.)
        self._ids = list(prompt_ids)
        self._start, self._said = 0, len(prompt_ids)
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
            self._ids.append(token_id)
            before, text = self._text(self._start, self._said), self._text(self._start, len(self._ids))
            if text.startswith(before) and text != before and not text.endswith("\ufffd"):
                self._say(text[len(before) :])
                self._start, self._said = self._said, len(self._ids)

    def _text(self, start: int, end: int) -> str:
        return str(self._engine.backend.decode(self._ids[start:end], skip_special_tokens=True))

    def end(self) -> None:
        """Says what is left: the bytes of a character that the last token did not finish."""
        whole = self._engine.continuation(self._asked, self.token_ids)
        if whole.startswith(self.text):
            self._say(whole[len(self.text) :])
        self.text = whole

    def _say(self, piece: str) -> None:
        if piece:
            self.text += piece
            self._on_text(piece)
