"""A verb's options, out of the table of variables: each reads the variable of its name from the environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from kit import settings
from kit.engines import devices, methods, torch_engine
from kit.environment import lock as locks
from kit.models import gguf_files
from kit.settings import Variable
from scripts import hints

Verb = TypeVar("Verb", bound=Callable[..., Any])

# What may stand there, for the help; kit says more of a name that is unknown than click would.
METAVARS = {
    "DEVICE": devices.NAMES,
    "DTYPE": torch_engine.FORMATS,
    "QUANT": gguf_files.NAMES,
    "PLATFORM": tuple(locks.PLATFORMS),
    "FROM": ("REPORT",),
    "A": ("REPORT",),
    "B": ("REPORT",),
}
RANGES = {"integer": click.IntRange, "number": click.FloatRange}


# For the container: a service that may write to models/ is asked for this before one that may not.
option_prepare = click.option(
    "--prepare", is_flag=True, hidden=True, help="Write the files that it needs, and no more."
)


def takes(verb: str) -> Callable[[Verb], Verb]:
    """`@takes("run")` gives a command every option that the table has for the verb."""

    def give(command: Verb) -> Verb:
        for variable in reversed(settings.taken_by(verb)):
            command = _option(variable)(command)
        return command

    return give


def _option(variable: Variable) -> Callable[[Verb], Verb]:
    names = (variable.option, variable.parameter)
    envvar = variable.name if settings.counts(variable) else None
    about = variable.about.split("\n")[0]
    if variable.kind == "flag":
        return click.option(*names, envvar=envvar, is_flag=True, help=about)
    kind: Any = click.Choice(methods.NAMES) if variable.name == "METHOD" else None
    if variable.kind in RANGES:
        kind = RANGES[variable.kind](variable.low, variable.high)
    shown = METAVARS.get(variable.name)
    callback = remember_model if variable.name == "MODEL" else None
    return click.option(
        *names,
        envvar=envvar,
        type=kind,
        default=variable.default,
        callback=callback,
        show_default=bool(variable.default),
        metavar=f"[{'|'.join(shown)}]" if shown else None,
        help=about,
    )


def remember_model(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """For the hints; of .env they need not speak, it counts for the next command too."""
    typed = context.get_parameter_source(parameter.name or "") in (
        ParameterSource.COMMANDLINE,
        ParameterSource.ENVIRONMENT,
    )
    hints.typed_model = value if typed and value != parameter.default else None
    return value


def number_formats(context: click.Context, method: str, dtype: str, quant: str) -> tuple[str, str]:
    """`dtype` and `quant`, where .env set the one that the method does not have: auto. It stands there for other runs;
    what is typed for this one is refused further down."""
    asked = {"dtype": dtype, "quant": quant}
    for name in asked:
        if name != methods.of(method).setting and context.get_parameter_source(name) is ParameterSource.DEFAULT_MAP:
            asked[name] = "auto"
    return asked["dtype"], asked["quant"]
