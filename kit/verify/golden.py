"""env/golden/<model>.json: what a model gave in float32 on a CPU, position by position, for anybody to compare with.

Greedy tokens alone differ between chips after some steps, for honest reasons. So a reference holds, for each prompt,
its tokens and the greedy continuation's, and at every compared position the log-probability of the token that stands
there and its margin over the best other token: both as natural logarithms.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kit.errors import Command, KitError, WrongUsage
from kit.files import beside
from kit.models.registry import Model
from kit.paths import ROOT

FOLDER = ROOT / "env" / "golden"
FORMAT = 1
# Wrong RoPE scaling shows only beyond a thousand tokens (0.64 at positions 1,024 to 2,047, 0.008 in short prompts).
LONG_TOKENS = 2048


@dataclass(frozen=True)
class Entry:
    """One prompt: `ids` are its tokens and the continuation's, `prompt_tokens` how many are the prompt's own.

    `logprobs` and `margins` are of the positions from `first` on; a margin is above 0 where greedy decoding takes the
    token.
    """

    name: str
    ids: tuple[int, ...]
    prompt_tokens: int
    first: int
    logprobs: tuple[float, ...]
    margins: tuple[float, ...]
    text: str


@dataclass(frozen=True)
class Golden:
    """A model's reference: for which `revision` and `files` (path -> sha256), and what it was `recorded` on."""

    model: str
    revision: str
    files: dict[str, str]
    recorded: dict[str, Any]
    entries: tuple[Entry, ...]


def path_of(model: Model) -> Path:
    return FOLDER / f"{model.name}.json"


def files_of(model: Model) -> dict[str, str]:
    """The sha256 of each file that decides what the model says."""
    return {file.path: file.sha256 for file in model.files if not file.path.endswith(("LICENSE", ".gguf"))}


@lru_cache(maxsize=1)
def prompts() -> dict[str, str]:
    """The prompts by name, each a file of env/golden/prompts/, letter for letter; the short ones first."""
    paths = sorted((FOLDER / "prompts").glob("*.txt"), key=lambda path: path.stat().st_size)
    return {path.stem: path.read_bytes().decode("utf-8") for path in paths}


def require_meaning(model: Model) -> None:
    """Raises WrongUsage for random weights: what they say is right whatever it is."""
    if model.is_random:
        why = f"{model.name} is {model.title}: there is nothing to verify in what it says."
        raise WrongUsage(why, Command("verify", MODEL="starter"))


def read(model: Model) -> Golden | None:
    """The model's reference, None where there is none.

    Raises KitError for one that is damaged, or of other files than env/models.toml pins, OSError for one that cannot be
    read.
    """
    require_meaning(model)
    shown = f"env/golden/{model.name}.json"
    try:
        said = json.loads(path_of(model).read_text(encoding="utf-8"))
        if said.pop("format") != FORMAT:
            raise ValueError("of another version of the kit")
        entries = tuple(Entry(**_tuples(entry)) for entry in said.pop("entries"))
        found = Golden(entries=entries, **said)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise KitError(f"{shown} cannot be read: {error}.", f"git checkout {shown}") from error
    if (found.revision, found.files) != (model.revision, files_of(model)):
        raise KitError(
            f"{shown} is the reference of other files than env/models.toml pins for {model.name}.",
            Command("verify", MODEL=model.name, RECORD="1", FORCE="1"),
            ", where the change of the model was meant",
        )
    return found


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}


def write(golden: Golden, path: Path) -> None:
    """A line an entry, floats to six digits: small, and a diff shows what changed."""
    head = {"format": FORMAT, **asdict(golden)}
    entries = head.pop("entries")
    lines = ",\n".join("  " + json.dumps(_rounded(entry), ensure_ascii=False) for entry in entries)
    text = json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}") + f',\n "entries": [\n{lines}\n ]\n}}\n'
    with beside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _rounded(entry: dict[str, Any]) -> dict[str, Any]:
    return entry | {name: [round(value, 6) for value in entry[name]] for name in ("logprobs", "margins")}
