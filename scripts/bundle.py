"""An offline bundle: the kit, its wheels and models, for machines without a network."""

from __future__ import annotations

import sys
from dataclasses import replace

import click

from kit.environment import lock as locks
from kit.errors import Command
from kit.models import registry, starter
from kit.offline import write as bundle_writer
from kit.paths import ROOT
from scripts import cli
from scripts.hints import words
from scripts.options import takes
from scripts.progress import ProgressLine


@click.command()
@takes("bundle")
def bundle(platform: str, model: str, extra: str) -> None:
    """Write dist/<name>/ and dist/<name>.tar, and print the digest that `make setup SHA256=` checks.

    MODEL is a list with commas. The starter always goes along: set-up needs it. The same commit, platforms and models
    give the same bytes.

    \b
    make bundle
    make bundle PLATFORM=macos-arm64,linux-x86_64 MODEL=starter,llama-3.2-1b
    make bundle EXTRA=ray
    """
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    targets = locks.targets(platform, python) if platform else [locks.this()]
    targets = [replace(target, extras=locks.extras(extra)) for target in targets]
    names = {name.strip() for name in model.split(",") if name.strip()} | {starter.NAME}
    with ProgressLine() as progress:
        made = bundle_writer.make([registry.find(name) for name in names], targets, progress)
    folder, tar = made.folder.relative_to(ROOT), made.tar.relative_to(ROOT)
    what = f"{', '.join(sorted(names))} for {', '.join(map(str, targets))}"
    cli.note(f"{folder}/ and {tar} ({made.size / 1e9:.2f} GB): {what}")
    cli.note("without a network:  make setup BUNDLE=<folder or tar> SHA256=<the digest below>")
    cli.note(f"in a room:          {words([Command('mirror', BUNDLE=folder, LISTEN='0.0.0.0')])}")
    cli.note("Hand the digest on by another way than the bundle itself:")
    cli.result(f"{made.digest}\n")


if __name__ == "__main__":
    cli.main(bundle)
