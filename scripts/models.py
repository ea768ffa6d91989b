"""What is here and known."""

from __future__ import annotations

import click

from kit import paths
from kit.errors import KitError
from kit.models import folder, registry
from kit.models.registry import Model
from scripts import cli


@click.command()
def models() -> None:
    """List every model that the kit knows and every tuning that is here: kind, size, base, and whether it is whole.

    \b
    make models
    """
    rows = [("name", "kind", "size", "base", "here")]
    rows += [(model.name, model.kind, _size(model), "", _state(model)) for model in registry.read().values()]
    for name in registry.tuned_names():
        try:
            found = registry.find(name)
            said = registry.read_tune(name)
            done = "" if said.get("complete") else f", {said['updates']} of {said['updates_planned']} updates so far"
            rows.append((name, "tuned", _size(found), found.foundation.name, _state(found) + done))
        except KitError as error:
            rows.append((name, "tuned", "", "", error.message))
    for path in sorted(paths.MODELS.glob(".*.tuning")):
        name = path.name[1 : -len(".tuning")]
        if name not in registry.tuned_names():
            rows.append((name, "tuned", "", "", "under way, or stopped: the command that began it goes on"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        cli.result("  ".join([*cells, row[4]]).rstrip() + "\n")


def _size(model: Model) -> str:
    return f"{model.size / 1e9:.2f} GB" if model.size >= 1e9 else f"{model.size / 1e6:.0f} MB"


def _state(model: Model) -> str:
    try:
        folder.check(model)
        return "whole"
    except KitError as error:
        if len(folder.missing(model)) == len(model.files):
            return "not here"
        return error.message


if __name__ == "__main__":
    cli.main(models)
