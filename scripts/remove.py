"""A tuned model, gone for good."""

from __future__ import annotations

import shutil
import sys

import click

from kit import paths
from kit.errors import Command, KitError, WrongUsage
from kit.files import locked
from kit.models import registry
from kit.tune.tune import workshop
from scripts import cli
from scripts.options import takes


@click.command()
@takes("remove")
def remove(name: str | None, force: bool) -> None:
    """Remove the tuned model NAME and its checkpoint, after asking. It cannot be fetched again.

    \b
    make remove NAME=mine
    """
    if not name:
        raise WrongUsage("NAME says which tuned model.", Command("models"), " lists them")
    if name in registry.read():
        raise WrongUsage(f"{name} is a model of env/models.toml, not a tuning.", f"rm -r models/{name}")
    target, checkpoint = paths.MODELS / name, workshop(name)
    places = [target] if name in registry.tuned_names() else []
    places += [checkpoint] if "/" not in name and checkpoint.is_dir() else []
    if not places:
        raise WrongUsage(f"there is no tuned model {name!r}.", Command("models"), " lists them")
    if not force:
        if not sys.stdin or not sys.stdin.isatty():
            why = "remove asks before it removes a tuning, and there is nobody to ask."
            raise KitError(why, Command("remove", NAME=name, FORCE="1"))
        cli.note(f"Remove models/{name}/ for good? A tuning cannot be fetched again. [y/N] ", end="")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            cli.note("nothing was removed")
            raise click.exceptions.Exit(1)
    waiting = f"waiting for another process that tunes {name}"
    with locked(target.with_name(f".{name}.lock"), lambda: cli.note(waiting)):
        for place in places:
            shutil.rmtree(place)
    cli.note(f"removed: {', '.join(f'models/{place.name}/' for place in places)}")


if __name__ == "__main__":
    cli.main(remove)
