"""A model of one's own, from a base model and a text."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from kit import reports
from kit.errors import Command
from kit.models import registry, starter
from kit.tune import evaluate, plot
from kit.tune import tune as tuning
from kit.tune.tune import Asked
from scripts import cli, hints
from scripts.options import takes
from scripts.progress import ProgressLine

WIDTH = 100


@click.command()
@takes("tune")
@click.pass_context
def tune(
    context: click.Context,
    model: str,
    device: str,
    seed: int,
    name: str | None,
    data: str | None,
    epochs: int | None,
    lr: float | None,
    rank: int | None,
    context_tokens: int | None,
) -> None:
    """Fine-tune MODEL on a text (LoRA), as a model under NAME for every verb.

    With nothing typed: the starter, on a small text about a made-up place, to see what changes. The same command goes
    on where it was stopped.

    \b
    make tune
    make tune DATA=notes.txt NAME=mine
    make tune DATA=notes/ MODEL=llama-3.2-1b NAME=llama-mine EPOCHS=3
    """
    if not is_typed(context, "model"):
        # What .env or the environment names is for other verbs: a model of gigabytes is tuned where it is typed.
        model, hints.typed_model = starter.NAME, None
    base = registry.find(model)
    asked = Asked(
        base=base,
        name=name or tuning.usual_name(base),
        data=Path(data) if data else None,
        device=device,
        epochs=epochs,
        lr=lr,
        rank=rank,
        context=context_tokens,
        seed=seed,
        typed_data=os.environ.get("KIT_DATA_NAME", ""),
    )
    with ProgressLine() as progress:
        ready = tuning.prepare(asked, progress.note)
        recipe = ready.recipe
        progress.note(
            f"{base.name} on {ready.engine.device.name} learns {ready.request['data']['tokens']} tokens of "
            f"{ready.text.name} ({len(ready.learnt)} samples; {ready.request['data']['held_out_samples']} held out): "
            f"EPOCHS={recipe.epochs} LR={recipe.lr:g} RANK={recipe.rank} CONTEXT={recipe.context} SEED={recipe.seed}"
        )
        said, was_here = tuning.tune(ready, progress.note, progress)
    if was_here:
        cli.note(f"{asked.name} is here already, of this very text and these settings; this is what came of it:")
    for line in told(said):
        cli.note(line)
    if not was_here:
        path = reports.write("tune", said)
        picture = reports.write_beside(path, ".png", lambda place: plot.draw(said, place))
        cli.note(f"loss over updates: reports/{picture.name}")
    if not said["complete"]:
        done = f"{said['updates']} of {said['updates_planned']}"
        cli.note(f"stopped after {done} updates: models/{asked.name}/ has the adapter so far, and can be run")
        cli.next_step(*asked.again(), "  goes on")
        raise click.exceptions.Exit(cli.INTERRUPTED)
    for line in evaluate.verdicts(said):
        cli.note(f"note: {line}")
    prompt = said["prompts"][0] if said["prompts"] else "…"
    run, own = Command("run", MODEL=asked.name, PROMPT=prompt), Command("tune", DATA="notes.txt", NAME="mine")
    cli.next_step(run, "\n  the base, for comparing: the same with ADAPTER=0; your own text: ", own)


def is_typed(context: click.Context, name: str) -> bool:
    """Whether a variable was typed for this very command, and comes neither from .env nor from the environment."""
    typed = name.upper() in os.environ.get("KIT_TYPED", "").split()
    return typed or context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def told(said: dict[str, Any]) -> list[str]:
    """What came of a tuning, a line each."""
    before, after = said["before"], said["after"]
    lines = []
    for prompt, base, tuned in zip(said["prompts"], before["completions"], after["completions"], strict=True):
        lines += [f"> {prompt}", f"    base:  {_short(base)}", f"    tuned: {_short(tuned)}"]
    lines.append("")
    if before["facts_right"] is not None:
        right = [
            f"{which} {each['facts_right']} of {len(each['answers'])}"
            for which, each in (("base", before), ("tuned", after))
        ]
        lines.append(f"facts right:             {', '.join(right)}")
    for what, name in (("held-out text:  ", "held_out_loss"), ("unrelated text: ", "unrelated_loss")):
        lines.append(f"loss on {what}  base {before[name]:.2f}, tuned {after[name]:.2f}")
    lines.append(
        f"[{said['name']}, {said['settings']['device']}, {said['settings']['dtype']}] {said['updates']} updates in "
        f"{said['training_s']:.0f} s, {said['tokens_per_s']:.0f} tokens/s, total {said['total_s']:.0f} s, "
        f"peak memory {said['peak_rss_bytes'] / 1e6:.0f} MB"
    )
    return lines


def _short(text: str) -> str:
    return textwrap.shorten(text, WIDTH, placeholder=" …")


if __name__ == "__main__":
    cli.main(tune)
