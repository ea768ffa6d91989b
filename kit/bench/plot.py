"""A bench as a picture: seconds by phase on the left, memory on the right, a bar a combination."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.bench import published
from kit.bench import table as bench_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Phases in the order in which they pass. The colours are Okabe and Ito's, which the colour-blind tell apart.
PHASES = {
    "rest_s": ("Python's start and end", "#999999"),
    "import_s": ("import", "#E69F00"),
    "load_s": ("load", "#56B4E9"),
    "first_token_s": ("first token", "#009E73"),
    "decode_s": ("decode", "#0072B2"),
}
MEMORY = {"peak_rss_bytes": ("memory", "#CC79A7"), "device_memory_bytes": ("GPU memory", "#D55E00")}
BAR = 0.7  # of a row's height
DPI = 144


def draw(content: dict[str, Any], path: Path) -> None:
    """Writes the picture of a bench report's content, as PNG. Imports matplotlib."""
    import matplotlib

    matplotlib.use("Agg")  # no window, and no display needed
    from matplotlib import pyplot

    rows = [row for row in content["rows"] if row["runs"]]
    # A row's height is left free above what is quoted.
    places = [*range(len(rows)), *range(len(rows) + 1, len(rows) + 1 + len(published.SECONDS))]
    size = 12, 2.2 + 0.42 * (places[-1] + 1)
    figure, (seconds, memory) = pyplot.subplots(
        1, 2, figsize=size, width_ratios=(3, 2), layout="constrained", sharey=True
    )
    figure.suptitle(f"{bench_table.title(content)}\n{bench_table.hardware(content)}", fontsize=11)
    _draw_seconds(seconds, rows)
    _draw_quoted(seconds, places[len(rows) :])
    _draw_memory(memory, rows)
    labels = [
        f"{row['method']}, {row['device']}, {row['dtype'] or row['quant']}{bench_table.mark(row)}" for row in rows
    ]
    labels += [f"{method}, {device}" for method, device in published.SECONDS]
    seconds.set_yticks(places, labels)
    seconds.set_ylim(places[-1] + 0.6, -0.6)
    figure.savefig(path, dpi=DPI, format="png")
    pyplot.close(figure)


def _draw_seconds(axes: Axes, rows: list[dict[str, Any]]) -> None:
    ends = [0.0] * len(rows)
    for name, (label, colour) in PHASES.items():
        widths = [row["summary"][name]["median"] for row in rows]
        axes.barh(range(len(rows)), widths, BAR, left=ends, color=colour, label=label)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for place, row in enumerate(rows):
        whole, speed = row["summary"]["process_s"], row["summary"]["decode_tokens_per_s"]["median"]
        axes.plot([whole["low"], whole["high"]], [place, place], color="black", linewidth=1.2)
        share = f", {row['ceiling_share']:.0%} of the ceiling" if row["ceiling_share"] else ""
        text = f"{whole['median']:.2f} s, {speed:.0f} tokens/s{share}"
        _write(axes, text, max(ends[place], whole["high"]), place)
    axes.set_xlabel("seconds from the start of the process to its end (medians; the line is the range of all)")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_quoted(axes: Axes, places: list[int]) -> None:
    widths, label = list(published.SECONDS.values()), f"quoted, not measured: {published.WHERE}"
    axes.barh(places, widths, BAR, color="white", edgecolor="#777777", hatch="///", label=label)
    for place, width in zip(places, widths, strict=True):
        _write(axes, f"{width} s (quoted)", width, place)
    low, high = axes.get_xlim()
    axes.set_xlim(0, max(high, low) * 1.25)  # room for the figures behind the bars
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False, fontsize=8)


def _draw_memory(axes: Axes, rows: list[dict[str, Any]]) -> None:
    ends = [0.0] * len(rows)
    for name, (label, colour) in MEMORY.items():
        sizes = [row["summary"][name]["median"] / 1e9 if name in row["summary"] else 0.0 for row in rows]
        if any(sizes):
            axes.barh(range(len(rows)), sizes, BAR, left=ends, color=colour, label=label)
            ends = [end + size for end, size in zip(ends, sizes, strict=True)]
    for place, end in enumerate(ends):
        _write(axes, f"{end:.2f} GB", end, place)
    axes.set_xlim(0, max([*ends, 0.1]) * 1.25)
    axes.set_xlabel("GB at the peak")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False, fontsize=8)


def _write(axes: Axes, text: str, end: float, place: int) -> None:
    """Writes the text behind the end of a bar."""
    axes.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
