"""What `make setup` does once .venv is there: the starter model, and Python's bytecode of the libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from kit import paths
from kit.errors import Command, KitError
from kit.models import starter
from scripts import cli
from scripts.progress import ProgressLine

# uv installs without bytecode. Compiling all of it takes 16 s, and most is never imported: the imports of a run compile
# what they need, in 7 s, while the other core fetches and converts the starter model.
WARM_UP = "from kit.engines import imports; imports.import_all()"


@click.command()
def setup() -> None:
    """Make the starter model, and the first run as fast as the second."""
    lock, warmed = paths.ROOT / ".venv" / "lock.txt", paths.ROOT / ".venv" / "warm"
    warm_up = None
    if _text(warmed) != _text(lock):
        cli.note("compiling what a run imports")
        command = [sys.executable, "-c", WARM_UP]
        warm_up = subprocess.Popen(command, cwd=paths.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        with ProgressLine() as progress:
            starter.ensure(progress)
    except BaseException:
        if warm_up:
            warm_up.kill()
        raise
    if warm_up:
        said, _ = warm_up.communicate()
        if warm_up.returncode:
            last = said.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise KitError(f"the environment does not import: {' '.join(last)}", Command("clean setup"))
        warmed.write_text(_text(lock), encoding="utf-8")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


if __name__ == "__main__":
    cli.main(setup)
