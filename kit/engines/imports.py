"""The libraries of a run: imported in one go, fast, and so that nothing of them reaches the network.

Changes seldom, and imports nothing of the kit but how threads wait: the container image compiles what this imports in a
layer of its own.
"""

from __future__ import annotations

import functools
import gc
import importlib
import os

from kit.engines import threads

# The methods would import the last three at first use, and their time would pass for the time of a load.
NAMES = (
    "torch",
    "transformers",
    "accelerate",
    "transformers.models.llama.modeling_llama",
    "transformers.pipelines.text_generation",
)
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "huggingface_hub")


def import_all() -> None:
    """Imports what a run needs. Models load from folders, so the Hub's client is told that it is offline."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    threads.before_torch()
    # A million objects arrive and stay: looking for garbage among them takes 0.7 of the 2.9 s, for nothing.
    gc.disable()
    for name in NAMES:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if not os.environ.get("KIT_DEBUG"):
        transformers.utils.logging.set_verbosity_error()


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Python's and each package's version that the outcome of a run depends on."""
    import platform

    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


@functools.cache
def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
