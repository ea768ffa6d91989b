"""cpu | mps | auto -> Device: where a model runs, in which number format, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kit.engines import llama_server, threads
from kit.environment import machine
from kit.environment.machine import Machine
from kit.errors import KitError, WrongUsage
from kit.models.gguf_files import Quant

NAMES = ("auto", "cpu", "mps")
DTYPES = ("auto", "bfloat16", "float16", "float32")

Obstacle = tuple[str, str]  # why not, and what to do about it


@dataclass(frozen=True)
class Device:
    """`name` is cpu or mps, `dtype` torch's name of a number format, or llama.cpp's; each with the reason for it."""

    name: str
    dtype: str
    reason: str
    dtype_reason: str


def choose(name: str, dtype: str, checkpoint_dtype: str) -> Device:
    """The device and number format for what was asked.

    `auto` takes MPS where it works, else the CPU, and says why; as a dtype it is the checkpoint's own. Raises KitError
    where the device asked for cannot run here, saying which of the causes it is, and WrongUsage for an unknown one.
    """
    _require_known("DTYPE", dtype, DTYPES)
    chosen, reason = _choose_name(name, _torch_obstacle)
    if dtype == "auto":
        return Device(chosen, checkpoint_dtype, reason, "the checkpoint's own")
    return Device(chosen, dtype, reason, "asked for")


def choose_for_llamacpp(name: str, quant: Quant) -> Device:
    """The same for llama.cpp, whose Metal kernels are what `mps` means there. torch is not imported."""
    chosen, reason = _choose_name(name, _llamacpp_obstacle)
    return Device(chosen, quant.name, reason, quant.reason)


def _require_known(variable: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise WrongUsage(f"{variable}={value} is unknown. Valid: {', '.join(valid)}.")


def _choose_name(name: str, own_obstacle: Callable[[Machine], Obstacle | None]) -> tuple[str, str]:
    if name == "cuda":
        raise WrongUsage("DEVICE=cuda: the kit's locks hold CPU builds of torch only.", "make run DEVICE=cpu")
    _require_known("DEVICE", name, NAMES)
    if name == "cpu":
        return "cpu", "asked for"
    obstacle = mps_obstacle(machine.this(), own_obstacle)
    if obstacle is None:
        return "mps", "asked for" if name == "mps" else "Apple's GPU works here"
    why, hint = obstacle
    if name == "mps":
        raise KitError(f"DEVICE=mps cannot run here: {why}.", hint)
    return "cpu", why


def mps_obstacle(here: Machine, own_obstacle: Callable[[Machine], Obstacle | None] | None = None) -> Obstacle | None:
    """Why MPS cannot run on `here`, and what to do about it; None where it can.

    What the library itself finds in the way, torch's by default, is asked only where everything before it allows MPS.
    """
    run_cpu = "make run DEVICE=cpu"
    if here.container:
        return "containers have no Metal", "on the Mac itself, outside the container: make run DEVICE=mps"
    if here.system != "Darwin":
        return f"MPS is the GPU of Apple Silicon, and this is {here.name}", run_cpu
    if here.translated:
        return (
            "this Python is x86_64 under Rosetta, which has no MPS",
            "install an arm64 Python, then: make clean setup PYTHON=/path/to/it",
        )
    if here.arch != "arm64":
        return f"this Mac has an Intel processor ({here.arch})", run_cpu
    if here.old_macos():
        return (
            f"MPS needs macOS {machine.OLDEST_MACOS} or later, and this is {here.macos}",
            f"update macOS, or: {run_cpu}",
        )
    return (own_obstacle or _torch_obstacle)(here)


def _no_metal(library: str) -> str:
    return f"{library} finds no Metal device (a sandbox, or a session without a display)"


def _llamacpp_obstacle(here: Machine) -> Obstacle | None:
    if llama_server.has_metal():
        return None
    why = "this macOS runs in a virtual machine, which passes no GPU on" if here.virtual else _no_metal("llama.cpp")
    return why, "make run DEVICE=cpu"


def _torch_obstacle(here: Machine) -> Obstacle | None:
    threads.before_torch()
    import torch

    run_cpu = "make run DEVICE=cpu"
    if not torch.backends.mps.is_built():
        return "this torch was built without MPS", "make clean setup"
    if not torch.backends.mps.is_available():
        if here.virtual:
            return "this macOS runs in a virtual machine, which passes no GPU on", run_cpu
        return _no_metal("torch"), run_cpu
    try:
        right = (torch.ones(2, device="mps") * 2).sum().item() == 4.0
    except RuntimeError as error:
        return f"the first operation on the GPU failed: {str(error).splitlines()[0]}", run_cpu
    return None if right else ("the first operation on the GPU gave a wrong number", run_cpu)
