"""The methods: two ways to run the same weights through transformers, a dozen lines each, and the third by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kit.engines import devices
from kit.engines.engine import Engine
from kit.engines.llamacpp_engine import LlamacppEngine
from kit.engines.request import Request
from kit.engines.torch_engine import TokenStream, TorchEngine
from kit.errors import Command, WrongUsage

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


class PipelineEngine(TorchEngine):
    """Method 1: transformers.pipeline. Least code; the library does the rest."""

    method = "pipeline"

    def open(self) -> PreTrainedModel:
        from transformers import GenerationConfig, pipeline

        self.pipe = pipeline(
            "text-generation",
            model=str(self.model.foundation.folder),
            tokenizer=self.tokenizer,
            model_kwargs={"generation_config": GenerationConfig()},
            **self.where,
        )
        return self.pipe.model

    def complete(self, request: Request, config: GenerationConfig, stream: TokenStream) -> None:
        self.pipe(request.prompt, generation_config=config, streamer=stream, return_full_text=False)


class ManualEngine(TorchEngine):
    """Method 2: tokenizer, model and generate by hand. More code, full control."""

    method = "manual"

    def open(self) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM, GenerationConfig

        return AutoModelForCausalLM.from_pretrained(
            self.model.foundation.folder, generation_config=GenerationConfig(), **self.where
        )

    def complete(self, request: Request, config: GenerationConfig, stream: TokenStream) -> None:
        import torch

        ids = torch.tensor([self.fit(request)], device=self.device.name)
        self.loaded.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=stream)


# A method that is added is a class of its own, and its name here.
ENGINES: dict[str, type[Engine]] = {engine.method: engine for engine in (PipelineEngine, ManualEngine, LlamacppEngine)}
NAMES = tuple(ENGINES)
# What others are held against: it has float32, and full control.
REFERENCE = ManualEngine


def of(method: str) -> type[Engine]:
    """The method's engine. Raises WrongUsage with the names that there are."""
    if method not in ENGINES:
        raise WrongUsage(f"METHOD={method} is unknown. Valid: {', '.join(NAMES)}.")
    return ENGINES[method]


def check(request: Request) -> type[Engine]:
    """The request's engine. Raises WrongUsage for an unknown method, and a number format that it does not have."""
    engine = of(request.method)
    for foreign in ("dtype", "quant"):
        value = getattr(request, foreign)
        if foreign != engine.setting and value != "auto":
            given = f"{foreign.upper()}={value}"
            takers = [name for name, other in ENGINES.items() if other.setting == foreign]
            why = f"{given} is for METHOD={' and '.join(takers)}; {engine.method} takes {engine.setting.upper()}."
            raise WrongUsage(why, Command("run", METHOD=takers[0]), f" {given}")
    valid, again = engine.formats(request.model), Command("run", METHOD=engine.method)
    devices.require_known(engine.setting.upper(), getattr(request, engine.setting), valid, again)
    return engine


def prepare(request: Request) -> Engine:
    """The engine for a request, with nothing loaded yet: format, device and why, and what has to be written first.

    Raises WrongUsage as `check` does, KitError where the device cannot run here.
    """
    engine = check(request)
    return engine(request.model, request.device, getattr(request, engine.setting))
