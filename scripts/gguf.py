"""A model's GGUF file, for METHOD=llamacpp."""

from __future__ import annotations

import time

import click

from kit.errors import Command
from kit.models import gguf_files, registry
from scripts import cli
from scripts.options import takes
from scripts.progress import ProgressLine


@click.command()
@takes("gguf")
def gguf(model: str, quant: str) -> None:
    """Write MODEL's GGUF in QUANT, from its verified weights. One that is there and whole stays as it is.

    \b
    make gguf MODEL=llama-3.2-1b QUANT=q4_0
    """
    found = registry.find(model)
    holder = found.foundation  # a tuned model's own adapter is a GGUF file already
    chosen = gguf_files.choose(holder, quant)
    start = time.monotonic()
    with ProgressLine() as progress:
        written = gguf_files.ensure(holder, chosen, progress)
    took = "as shipped" if chosen.is_shipped else "was here already"
    if written:
        took = f"written in {time.monotonic() - start:.1f} s"
    size = chosen.path.stat().st_size
    cli.note(f"models/{holder.name}/{chosen.path.name}: {chosen.name}, {size / 1e9:.2f} GB, {took}")
    cli.note(f"sha256 {gguf_files.digest(chosen, holder)}")
    cli.next_step(Command("run", METHOD="llamacpp", MODEL=model, QUANT=chosen.name))


if __name__ == "__main__":
    cli.main(gguf)
