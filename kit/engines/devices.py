"""cpu | mps | auto: where a model runs, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kit.environment import machine
from kit.environment.machine import Machine
from kit.errors import Command, Hint, KitError, Part, WrongUsage

NAMES = ("auto", "cpu", "mps")

Obstacle = tuple[str, Hint]  # why not, and what to do about it
# What a library itself finds in the way of MPS on a machine that allows it.
Look = Callable[[Machine], Obstacle | None]


@dataclass(frozen=True)
class Device:
    """`name` is cpu or mps, `number_format` as the method's library names it; each with the reason for it."""

    name: str
    number_format: str
    reason: str
    format_reason: str


def choose(name: str, look: Look) -> tuple[str, str]:
    """The device for what was asked, and the reason: `auto` takes MPS where it works, else the CPU.

    Raises KitError where the device asked for cannot run here, saying which of the causes it is, and WrongUsage for an
    unknown one.
    """
    if name == "cuda":
        raise WrongUsage("DEVICE=cuda: the kit's locks hold CPU builds of torch only.", Command("run", DEVICE="cpu"))
    require_known("DEVICE", name, NAMES)
    if name == "cpu":
        return "cpu", "asked for"
    obstacle = mps_obstacle(machine.this(), look)
    if obstacle is None:
        return "mps", "asked for" if name == "mps" else "Apple's GPU works here"
    why, hint = obstacle
    if name == "mps":
        raise KitError(f"DEVICE=mps cannot run here: {why}.", *hint)
    return "cpu", why


def require_known(variable: str, value: str, valid: tuple[str, ...], *hint: Part) -> None:
    """Raises WrongUsage with the values that there are."""
    if value not in valid:
        raise WrongUsage(f"{variable}={value} is unknown. Valid: {', '.join(valid)}.", *hint)


def mps_obstacle(here: Machine, look: Look) -> Obstacle | None:
    """Why MPS cannot run on `here`, and what to do about it; None where it can.

    The library is asked only where everything before it allows MPS.
    """
    run_cpu = Command("run", DEVICE="cpu")
    if here.container:
        hint = "on the Mac itself, outside the container: ", Command("run", DEVICE="mps")
        return "no container reaches Apple's GPU", hint
    if here.system != "Darwin":
        return f"MPS is the GPU of Apple Silicon, and this is {here.name}", (run_cpu,)
    if here.translated:
        install = "install an arm64 Python, then: ", Command("clean setup", PYTHON="/path/to/it")
        return "this Python is x86_64 under Rosetta, which has no MPS", install
    if here.arch != "arm64":
        return f"this Mac has an Intel processor ({here.arch})", (run_cpu,)
    if here.old_macos():
        why = f"MPS needs macOS {machine.OLDEST_MACOS} or later, and this is {here.macos}"
        return why, ("update macOS, or: ", run_cpu)
    return look(here)


def no_metal(library: str, here: Machine) -> Obstacle:
    """The obstacle where a library finds no GPU on a Mac that should have one."""
    why = f"{library} finds no Metal device (a sandbox, or a session without a display)"
    return ("this macOS runs in a virtual machine, which passes no GPU on" if here.virtual else why), (
        Command("run", DEVICE="cpu"),
    )
