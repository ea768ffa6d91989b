"""What a bench runs: every combination of method, device and number format that there is, each once a turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kit.bench import roofline
from kit.engines import devices, methods, torch_engine
from kit.engines.request import DEFAULT_PROMPT
from kit.environment import machine
from kit.errors import KitError, WrongUsage
from kit.models import folder as model_folder
from kit.models import gguf_files
from kit.models.gguf_files import Quant
from kit.models.registry import Model

NEW_TOKENS = 50
# The usual ones; `auto` is the GGUF as shipped.
QUANTS = ("auto", "bf16", "q4_0")

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Combination:
    """`dtype` for pipeline and manual, `quant` for llamacpp; `bytes_per_token` of weights that each new token reads."""

    method: str
    device: str
    dtype: str | None
    quant: str | None
    bytes_per_token: int

    @property
    def number_format(self) -> str:
        return self.dtype or self.quant or ""

    def __str__(self) -> str:
        return f"{self.method} on {self.device} in {self.number_format}"


@dataclass(frozen=True)
class Plan:
    """`turns` count, after one that does not; `without_mps` says why no combination is on the GPU ("": one is)."""

    model: Model
    combinations: tuple[Combination, ...]
    turns: int
    new_tokens: int
    without_mps: str
    prompt: str = DEFAULT_PROMPT


def make(
    model: Model,
    method_names: Sequence[str],
    device_names: Sequence[str],
    dtypes: Sequence[str],
    quant_names: Sequence[str],
    turns: int,
    new_tokens: int = NEW_TOKENS,
    on_progress: Progress = lambda what, share: None,
) -> Plan:
    """The plan, and the GGUF files that it needs. An empty list of number formats stands for the usual ones.

    Raises WrongUsage for a name that is unknown or that no method takes, KitError where the model is not whole or a
    device that was asked for by name cannot run here.
    """
    _require_known("METHODS", method_names, methods.NAMES)
    if "cuda" in device_names:
        devices.choose("cuda", "auto", "")  # which says why not
    _require_known("DEVICES", device_names, devices.NAMES)
    through_torch = [name for name in method_names if name != methods.LLAMACPP]
    if dtypes and not through_torch:
        raise WrongUsage(
            f"DTYPES={','.join(dtypes)} is for pipeline and manual, and METHODS has neither.",
            "make bench METHODS=manual,llamacpp",
        )
    if quant_names and methods.LLAMACPP not in method_names:
        raise WrongUsage(f"QUANTS={','.join(quant_names)} is for llamacpp, and METHODS lacks it.", "make bench")
    # Before anything is written for one of them.
    _require_known("DTYPES", dtypes or ["auto"], devices.DTYPES)
    _require_known("QUANTS", quant_names or ["auto"], gguf_files.names(model))
    chosen = list(_quants(model, quant_names))
    model_folder.check(model)
    found: dict[Combination, None] = {}
    obstacles = []
    checkpoint_dtype = torch_engine.checkpoint_dtype(model)
    for method in dict.fromkeys(through_torch):
        for dtype in dtypes or ["auto"]:
            names, obstacle = _devices(device_names, partial(_torch, dtype, checkpoint_dtype))
            obstacles.append(obstacle)
            for name, number_format in names:
                size = roofline.of_torch(model, number_format)
                found[Combination(method, name, number_format, None, size)] = None
    if methods.LLAMACPP in method_names:
        for quant in chosen:
            names, obstacle = _devices(device_names, partial(_llamacpp, quant))
            obstacles.append(obstacle)
            gguf_files.ensure(model, quant, on_progress)
            size = roofline.of_gguf(quant.path)
            found |= {Combination(methods.LLAMACPP, name, None, quant.name, size): None for name, _ in names}
    without = "" if any(one.device == "mps" for one in found) else next(filter(None, obstacles), "it was not asked for")
    return Plan(model, tuple(found), turns, new_tokens, without)


def _require_known(variable: str, names: Sequence[str], valid: Sequence[str]) -> None:
    if not names:
        raise WrongUsage(f"{variable} is empty. Valid: {', '.join(valid)}.", "make bench")
    for name in names:
        if name not in valid:
            raise WrongUsage(f"{variable}: {name} is unknown. Valid: {', '.join(valid)}.", "make bench")


def _torch(dtype: str, checkpoint_dtype: str, name: str) -> tuple[str, str]:
    chosen = devices.choose(name, dtype, checkpoint_dtype)
    return chosen.name, chosen.dtype


def _llamacpp(quant: Quant, name: str) -> tuple[str, str]:
    chosen = devices.choose_for_llamacpp(name, quant)
    return chosen.name, chosen.dtype


def _devices(asked: Sequence[str], choose: Callable[[str], tuple[str, str]]) -> tuple[list[tuple[str, str]], str]:
    """The devices, each with its number format; `auto` is every one that works here. And why MPS is not among them."""
    found: dict[tuple[str, str], None] = {}
    obstacle = ""
    for name in asked:
        if name != "auto":
            try:
                found[choose(name)] = None
            except KitError as error:
                raise type(error)(error.message, "make bench DEVICES=cpu") from error
            continue
        found[choose("cpu")] = None
        try:
            found[choose("mps")] = None
        except KitError as error:
            why = devices.mps_obstacle(machine.this())
            obstacle = why[0] if why else error.message
    return list(found), obstacle


def _quants(model: Model, names: Sequence[str]) -> Iterator[Quant]:
    """Each file once: `auto` is the one as shipped, and where none is, another that is named anyway."""
    seen: set[Path] = set()
    for name in names or QUANTS:
        quant = gguf_files.choose(model, name)
        if quant.path not in seen:
            seen.add(quant.path)
            yield quant
