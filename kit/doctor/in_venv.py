"""The doctor's second stage, inside .venv: what only the libraries can say."""

from __future__ import annotations

from kit.doctor import hub as hub_checks
from kit.doctor.check import FAIL, OK, Listed, Outcome
from kit.engines import devices, imports, torch_engine
from kit.errors import Command


def listed(model_name: str) -> list[Listed]:
    """Every check of this stage, for the model that is chosen."""
    # First, so that the network is asked while the libraries are imported.
    hub = hub_checks.listed(model_name)
    return [("D20", "libraries", check_libraries), ("D21", "device", check_device), *hub]


def check_libraries() -> Outcome:
    try:
        imports.import_all()
    except Exception as error:
        return Outcome(FAIL, f"the libraries do not import: {type(error).__name__}: {error}", Command("clean setup"))
    return Outcome(OK, ", ".join(f"{name} {version}" for name, version in imports.versions().items()))


def check_device() -> Outcome:
    """What DEVICE=auto takes, and why."""
    name, reason = devices.choose("auto", torch_engine.obstacle)
    return Outcome(OK, f"{name}: {reason}")
