"""The two ways to run the same weights through transformers, from the same folder, on any device.

Both read the weights straight onto the device (`device_map`). `pipeline(device="mps")` and `.to("mps")` load them on
the CPU first and copy: that is the memory pressure that the kit's origin measured on MPS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.engines.devices import Device
from kit.errors import WrongUsage

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from kit.engines.torch_engine import TokenStream


@dataclass(frozen=True)
class Loaded:
    """A model in memory. `generate(prompt, config, stream)` completes the prompt, a token at a time into the stream."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    generate: Callable[[str, GenerationConfig, TokenStream], Any]


def load_pipeline(folder: Path, device: Device) -> Loaded:
    """Method 1: transformers.pipeline. Least code; the library does the rest."""
    import torch
    from transformers import pipeline

    pipe = pipeline(
        "text-generation", model=str(folder), dtype=getattr(torch, device.dtype), device_map={"": device.name}
    )

    def generate(prompt: str, config: GenerationConfig, stream: TokenStream) -> None:
        pipe(prompt, generation_config=config, streamer=stream, return_full_text=False)

    return Loaded(pipe.tokenizer, pipe.model, generate)


def load_manual(folder: Path, device: Device) -> Loaded:
    """Method 2: tokenizer, model and generate by hand. More code, full control."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, device.dtype), device_map={"": device.name}
    )

    def generate(prompt: str, config: GenerationConfig, stream: TokenStream) -> None:
        inputs = tokenizer(prompt, return_tensors="pt").to(device.name)
        model.generate(**inputs, generation_config=config, streamer=stream)

    return Loaded(tokenizer, model, generate)


LOADERS = {"pipeline": load_pipeline, "manual": load_manual}
LLAMACPP = "llamacpp"  # Method 3: kit/engines/llamacpp_engine.py
NAMES = (*LOADERS, LLAMACPP)


def check_format(method: str, dtype: str, quant: str) -> None:
    """Raises WrongUsage where a number format is asked for that the method does not have."""
    if method == LLAMACPP and dtype != "auto":
        raise WrongUsage(
            f"DTYPE={dtype} is for pipeline and manual; METHOD=llamacpp takes QUANT.",
            "make run METHOD=llamacpp QUANT=bf16",
        )
    if method != LLAMACPP and quant != "auto":
        raise WrongUsage(
            f"QUANT={quant} is for METHOD=llamacpp; {method} takes DTYPE.", f"make run METHOD=llamacpp QUANT={quant}"
        )
