"""A bench as Markdown, to paste: its hardware, a row a combination, and what the numbers say."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

COLUMNS = "method|device|format|import s|load s|first token s|tokens/s|ceiling|share|all s|memory MB|GPU MB".split("|")
TEXTS = 3  # columns of text; the others hold numbers


def markdown(content: dict[str, Any]) -> str:
    """From a bench report's content."""
    # Without a GPU its memory needs no column.
    shown = len(COLUMNS) - all("device_memory_bytes" not in row["summary"] for row in content["rows"])
    lines = [_heading(content), "", _line(COLUMNS[:shown]), _line([*["---"] * TEXTS, *["---:"] * (shown - TEXTS)])]
    lines += [_line(_cells(row)[:shown]) for row in content["rows"]]
    lines += ["", _legend(content)]
    if any(mark(row) for row in content["rows"]):
        lines += ["", f"\\* disturbed in every turn: {statistics.mode(content['disturbances'])}."]
    lines += [f"\n{label(row)} failed: {row['failure']}" for row in content["rows"] if row["failure"]]
    if content["quality"]:
        lines += ["", *_quality(content["quality"])]
    lines += ["", *(f"- {sentence}" for sentence in content["conclusions"])]
    return "\n".join(lines) + "\n"


def hardware(content: dict[str, Any]) -> str:
    """The machine in a few words. Memory in GB of 10^9 bytes."""
    facts = content["facts"]
    memory = f"{facts['memory'] / 1e9:.0f} GB, " if facts["memory"] else ""
    system = "macOS" if facts["os"]["system"] == "Darwin" else facts["os"]["system"]
    inside = ", in a container" if facts["os"]["container"] else ""
    return f"{facts['cpu']['model']}, {facts['cpu']['cores']} cores, {memory}{system} {facts['os']['release']}{inside}"


def title(content: dict[str, Any]) -> str:
    random = " (random weights: for speed and memory alone)" if content["model"]["random"] else ""
    return f"{content['model']['name']}{random}, {content['request']['new_tokens']} new tokens"


def _heading(content: dict[str, Any]) -> str:
    facts = content["facts"]
    packages = facts["packages"]
    names = [name for name in ("torch", "transformers", "xllamacpp") if name in packages]
    versions = ", ".join(f"{name} {packages[name]}" for name in names)
    return f"**{title(content)}**, on {hardware(content)}; Python {facts['python']['version']}, {versions}"


def _legend(content: dict[str, Any]) -> str:
    read = ", ".join(f"{device} {each['median'] / 1e9:.1f} GB/s" for device, each in content["bandwidth"].items())
    ceiling = f"`ceiling`: tokens/s that reading the weights allows at this machine's bandwidth ({read}). "
    done, asked = content["runs_done"], content["request"]["runs"]
    runs = "One run in a fresh process" if done == 1 else f"Medians of {done} runs in fresh processes"
    early = f" (stopped after {done} of {asked})" if done < asked else ""
    return (
        f"{runs}{early}, smallest and largest in brackets; `tokens/s` after the first; `all s` from the start of the "
        f"process to its end. {ceiling if read else ''}Memory at its peak."
    )


def label(row: dict[str, Any]) -> str:
    """A row's name, as its Combination has it."""
    return f"{row['method']} on {row['device']} in {row['dtype'] or row['quant']}"


def mark(row: dict[str, Any]) -> str:
    """What stands behind the name of a row whose figures were disturbed."""
    return " *" if row.get("disturbed") else ""


def _cells(row: dict[str, Any]) -> list[str]:
    summary = row["summary"]

    def one(name: str, digits: int, scale: float = 1.0, with_range: bool = False) -> str:
        if name not in summary:
            return "–"
        median, low, high = (summary[name][key] / scale for key in ("median", "low", "high"))
        return f"{median:.{digits}f}" + (f" ({low:.{digits}f} to {high:.{digits}f})" if with_range else "")

    ceiling, share = row["ceiling_tokens_per_s"], row["ceiling_share"]
    return [
        row["method"] + mark(row),
        row["device"],
        row["dtype"] or row["quant"],
        one("import_s", 2),
        one("load_s", 2),
        one("first_token_s", 2),
        one("decode_tokens_per_s", 1, with_range=True),
        f"{ceiling:.0f}" if ceiling else "–",
        f"{share:.0%}" if share else "–",
        one("process_s", 2, with_range=True),
        one("peak_rss_bytes", 0, 1e6),
        one("device_memory_bytes", 0, 1e6),
    ]


def _quality(quality: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"Quality, on {quality[0]['tokens']} tokens of the Constitution of the United States, beside float32's:",
        "",
        _line(("method", "device", "format", "perplexity", "same first token")),
        _line([*["---"] * TEXTS, "---:", "---:"]),
    ]
    for row in quality:
        cells = [row["method"], row["device"], row["dtype"] or row["quant"]]
        lines.append(_line([*cells, f"{row['perplexity']:.3f}", f"{row['top1_agreement']:.1%}"]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
