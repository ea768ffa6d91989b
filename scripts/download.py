"""A model from the Hub, whole and proved."""

from __future__ import annotations

import click

from kit.errors import Command
from kit.formats import llama_config
from kit.hub import download as model_download
from kit.models import examine, registry
from scripts import cli
from scripts.options import takes
from scripts.progress import ProgressLine


@click.command()
@takes("download")
def download(model: str) -> None:
    """Download MODEL at its pinned commit into models/, every byte verified.

    An interrupted download goes on where it stopped. A model that is whole asks nothing of the network.

    \b
    make download MODEL=llama-3.2-1b
    make download MODEL=smollm2-135m
    """
    found = registry.find(model)
    with ProgressLine() as progress:
        fetched = model_download.download(found, progress, progress.note)
    state = "is here" if fetched else "was here already"
    cli.note(f"{model} {state}: {found.size / 1e9:.2f} GB in models/{model}/, every sha256 as pinned")
    examined = examine.examination(found)
    for note in examined.notes:
        cli.note(f"note: {note}")
    for framework in llama_config.ALL:
        if against := examined.against(framework):
            cli.note(f"warning: {framework} cannot run it: {'; '.join(against)}")
    # The method that nobody has to type is one of PyTorch's.
    able = not examined.against(llama_config.TORCH)
    cli.next_step(*([Command("run", MODEL=model)] if able else examine.how_to_run(found)))


if __name__ == "__main__":
    cli.main(download)
