"""The options that more than one verb takes. Each reads the make variable of its name from the environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from kit import devices, methods

Function = TypeVar("Function", bound=Callable[..., Any])

option_model = click.option(
    "--model",
    envvar="MODEL",
    default="starter",
    show_default=True,
    help="A section of env/models.toml.",
)
option_device = click.option(
    "--device",
    envvar="DEVICE",
    # Not click.Choice: kit.devices says for `cuda` and `mps` why they cannot run.
    default="auto",
    show_default=True,
    metavar=f"[{'|'.join(devices.NAMES)}]",
    help="auto takes MPS where it works, else the CPU.",
)
option_dtype = click.option(
    "--dtype",
    envvar="DTYPE",
    default="auto",
    show_default=True,
    metavar=f"[{'|'.join(devices.DTYPES)}]",
    help="auto is the number format of the weights.",
)
option_method = click.option(
    "--method",
    envvar="METHOD",
    type=click.Choice(methods.NAMES),
    default="pipeline",
    show_default=True,
    help="Least code, or full control.",
)
option_json = click.option(
    "--json", "as_json", envvar="JSON", is_flag=True, help="One JSON document on one line instead of text."
)


def option_later(
    name: str, variable: str = "", neutral: tuple[str, ...] = (), flag: bool = False
) -> Callable[[Function], Function]:
    """An option whose part does not exist yet: hidden, and refused unless its value is `neutral`."""

    def refuse(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value and value not in neutral:
            raise click.UsageError(f"{variable or name} is of a part that this version of the kit does not have yet.")

    return click.option(
        name, envvar=variable or None, hidden=True, expose_value=False, is_flag=flag, callback=refuse, is_eager=True
    )
