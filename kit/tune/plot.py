"""A tuning as a picture: loss over updates, of the text that it learns and of the text that was held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DPI = 144
RECENT = 20  # the mean of how many updates, at most: one alone jumps


def draw(said: dict[str, Any], path: Path) -> None:
    """Writes the picture of what tune.json says, as PNG. Imports matplotlib."""
    import matplotlib

    matplotlib.use("Agg")  # no window, and no display needed
    from matplotlib import pyplot

    curve, updates = said["curve"], said["updates"]
    training = curve["training"]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    count = range(1, len(training) + 1)
    axes.plot(count, training, color="#56B4E9", linewidth=0.6, alpha=0.5)
    width = min(RECENT, max(1, len(training) // 10))
    means = [sum(training[max(0, n - width) : n]) / min(width, n) for n in count]
    axes.plot(count, means, color="#0072B2", label=f"the text that it learns (mean of {width} updates)")
    at = [0, *curve["at"], updates]
    held_out = [said["before"]["held_out_loss"], *curve["held_out"], said["after"]["held_out_loss"]]
    axes.plot(at, held_out, color="#D55E00", marker="o", markersize=4, label="the text that was held out")
    axes.axhline(said["before"]["unrelated_loss"], color="#999999", linestyle=":", linewidth=1)
    axes.plot(
        [0, updates],
        [said["before"]["unrelated_loss"], said["after"]["unrelated_loss"]],
        color="#999999",
        marker="s",
        markersize=4,
        linestyle="none",
        label="a text that has nothing to do with it",
    )
    axes.set_xlabel("updates")
    axes.set_ylabel("loss (nats a token)")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    settings = said["settings"]
    axes.set_title(
        f"{said['name']}: {said['base']['name']} on {said['data']['name']}\n"
        f"{settings['epochs']} epochs, rate {settings['lr']:g}, rank {settings['rank']}, "
        f"{settings['context']} tokens an update, seed {settings['seed']}",
        fontsize=10,
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI, format="png")
    pyplot.close(figure)
