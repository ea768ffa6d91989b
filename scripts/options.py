"""The options that more than one verb takes. Each reads the make variable of its name from the environment."""

from __future__ import annotations

import click
from click.core import ParameterSource

from kit.engines import devices, methods, torch_engine
from kit.models import gguf_files

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
    metavar=f"[{'|'.join(torch_engine.FORMATS)}]",
    help="For pipeline and manual: auto is the number format of the weights.",
)
option_method = click.option(
    "--method",
    envvar="METHOD",
    type=click.Choice(methods.NAMES),
    default="pipeline",
    show_default=True,
    help="Least code, full control, or llama.cpp.",
)
option_json = click.option(
    "--json", "as_json", envvar="JSON", is_flag=True, help="One JSON document on one line instead of text."
)
option_quant = click.option(
    "--quant",
    envvar="QUANT",
    default="auto",
    show_default=True,
    metavar=f"[{'|'.join(gguf_files.NAMES)}]",
    help="For METHOD=llamacpp: auto is the GGUF as shipped, else bf16.",
)


def number_formats(context: click.Context, method: str, dtype: str, quant: str) -> tuple[str, str]:
    """`dtype` and `quant`, where .env set the one that the method does not have: auto. It stands there for other runs;
    what is typed for this one is refused further down."""
    asked = {"dtype": dtype, "quant": quant}
    for name in asked:
        if name != methods.of(method).setting and context.get_parameter_source(name) is ParameterSource.DEFAULT_MAP:
            asked[name] = "auto"
    return asked["dtype"], asked["quant"]
