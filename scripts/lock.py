"""The locks, resolved anew from env/requirements*.in."""

from __future__ import annotations

import click

from kit.environment import resolve
from kit.paths import ROOT
from scripts import cli


@click.command()
def lock() -> None:
    """Rebuild env/lock/*.txt, keeping each version that still fits.

    Run it after a change of env/requirements.in, and commit both. To take newer versions of everything, remove
    env/lock/*.txt first.
    """
    for path in resolve.rebuild():
        lines = path.read_text(encoding="utf-8").splitlines()
        packages = sum(1 for line in lines if line[:1].isalnum())
        cli.note(f"{path.relative_to(ROOT)}: {packages} packages")


if __name__ == "__main__":
    cli.main(lock)
