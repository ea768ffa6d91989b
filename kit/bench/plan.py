"""What a bench runs: every combination of method, device and number format that there is, each once a turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kit.engines import devices, methods
from kit.engines.engine import Engine
from kit.engines.request import DEFAULT_PROMPT
from kit.errors import Command, KitError, WrongUsage
from kit.files import Progress, silent
from kit.models import folder as model_folder
from kit.models.registry import Model

NEW_TOKENS = 50
# The usual number formats, by the setting that names them; `auto` is the checkpoint's own, or the GGUF as shipped.
USUAL = {"dtype": ("auto",), "quant": ("auto", "bf16", "q4_0")}


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
) -> Plan:
    """The plan; nothing is written for it. An empty list of number formats stands for the usual ones.

    Raises WrongUsage for a name that is unknown or that no method takes, KitError where the model is not whole or a
    device that was asked for by name cannot run here.
    """
    _require_known("METHODS", method_names, methods.NAMES)
    if "cuda" not in device_names:  # of which `choose` says why not
        _require_known("DEVICES", device_names, devices.NAMES)
    formats = {"dtype": dtypes, "quant": quant_names}
    engines = [methods.of(name) for name in dict.fromkeys(method_names)]
    for setting, names in formats.items():
        if names and not any(engine.setting == setting for engine in engines):
            takers = " and ".join(name for name in methods.NAMES if methods.of(name).setting == setting)
            why = f"{setting.upper()}S={','.join(names)} is for {takers}, and METHODS has none of them."
            raise WrongUsage(why, Command("bench", METHODS=",".join(methods.NAMES)))
    for engine in engines:
        _require_known(f"{engine.setting.upper()}S", formats[engine.setting] or ["auto"], engine.formats(model))
    model_folder.check(model)
    found: list[Combination] = []
    obstacles = []
    for engine in engines:
        for number_format in formats[engine.setting] or USUAL[engine.setting]:
            here, obstacle = _on_devices(device_names, partial(engine, model, number_format=number_format))
            obstacles.append(obstacle)
            found += [
                Combination(one.method, one.device.name, **one.number_formats, bytes_per_token=one.bytes_per_token())
                for one in here
            ]
    without = "" if any(one.device == "mps" for one in found) else next(filter(None, obstacles), "it was not asked for")
    return Plan(model, tuple(dict.fromkeys(found)), turns, new_tokens, without)


def prepare(plan: Plan, on_progress: Progress = silent) -> None:
    """Writes the files of the weights that the plan's runs need and that are not there. Raises KitError."""
    for one in plan.combinations:
        methods.of(one.method)(plan.model, one.device, one.number_format).write_file(on_progress)


def _require_known(variable: str, names: Sequence[str], valid: Sequence[str]) -> None:
    if not names:
        raise WrongUsage(f"{variable} is empty. Valid: {', '.join(valid)}.", Command("bench"))
    for name in names:
        if name not in valid:
            raise WrongUsage(f"{variable}: {name} is unknown. Valid: {', '.join(valid)}.", Command("bench"))


def _on_devices(asked: Sequence[str], engine: Callable[[str], Engine]) -> tuple[list[Engine], str]:
    """An engine for each device; `auto` is every one that works here. And why MPS is not among them."""
    found: dict[str, Engine] = {}
    obstacle = ""
    for name in asked:
        try:
            chosen = engine(name)
        except KitError as error:
            raise type(error)(error.message, Command("bench", DEVICES="cpu")) from error
        if name == "auto":
            found["cpu"] = engine("cpu")
            # On a Mac without a working GPU it is the CPU, and says why.
            obstacle = chosen.device.reason if chosen.device.name == "cpu" else ""
        found[chosen.device.name] = chosen
    return list(found.values()), obstacle
