"""cpu | mps | auto -> Device: where a model runs, in which number format, and why."""

from __future__ import annotations

from dataclasses import dataclass

from kit import machine
from kit.errors import KitError, WrongUsage
from kit.machine import Machine

NAMES = ("auto", "cpu", "mps")
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Device:
    """`name` is cpu or mps, `dtype` torch's name of a number format; each with the reason for it."""

    name: str
    dtype: str
    reason: str
    dtype_reason: str


def choose(name: str, dtype: str, checkpoint_dtype: str) -> Device:
    """The device and number format for what was asked.

    `auto` takes MPS where it works, else the CPU, and says why; as a dtype it is the checkpoint's own. Raises KitError
    where the device asked for cannot run here, saying which of the causes it is, and WrongUsage for an unknown one.
    """
    if name == "cuda":
        raise WrongUsage("DEVICE=cuda: the kit's locks hold CPU builds of torch only.", "make run DEVICE=cpu")
    for value, valid, variable in ((name, NAMES, "DEVICE"), (dtype, DTYPES, "DTYPE")):
        if value not in valid:
            raise WrongUsage(f"{variable}={value} is unknown. Valid: {', '.join(valid)}.")
    chosen, reason = _choose_name(name)
    if dtype == "auto":
        return Device(chosen, checkpoint_dtype, reason, "the checkpoint's own")
    return Device(chosen, dtype, reason, "asked for")


def _choose_name(name: str) -> tuple[str, str]:
    if name == "cpu":
        return "cpu", "asked for"
    obstacle = mps_obstacle(machine.this())
    if obstacle is None:
        return "mps", "asked for" if name == "mps" else "Apple's GPU works here"
    why, hint = obstacle
    if name == "mps":
        raise KitError(f"DEVICE=mps cannot run here: {why}.", hint)
    return "cpu", why


def mps_obstacle(here: Machine) -> tuple[str, str] | None:
    """Why MPS cannot run on `here`, and what to do about it; None where it can.

    torch is imported only where everything before it allows MPS.
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
    return _torch_obstacle(here)


def _torch_obstacle(here: Machine) -> tuple[str, str] | None:
    import torch

    run_cpu = "make run DEVICE=cpu"
    if not torch.backends.mps.is_built():
        return "this torch was built without MPS", "make clean setup"
    if not torch.backends.mps.is_available():
        if here.virtual:
            return "this macOS runs in a virtual machine, which passes no GPU on", run_cpu
        return "torch finds no Metal device (a sandbox, or a session without a display)", run_cpu
    try:
        right = (torch.ones(2, device="mps") * 2).sum().item() == 4.0
    except RuntimeError as error:
        return f"the first operation on the GPU failed: {str(error).splitlines()[0]}", run_cpu
    return None if right else ("the first operation on the GPU gave a wrong number", run_cpu)
