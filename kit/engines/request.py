"""What is asked of a model and what comes of it, the same for every method."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from kit.models.registry import Model

DEFAULT_PROMPT = "Hello, who or what are you ?"


@dataclass(frozen=True)
class Request:
    """What to complete and how. `temperature` 0 is greedy decoding; above it, tokens are drawn, seeded by `seed`.

    `dtype` and `quant` name the number format; each method takes one of the two. With `ignore_eos` no token ends the
    text early. `prompt_ids` stand in place of the prompt's own, where a proof needs these very tokens.
    """

    model: Model
    prompt: str = ""
    method: str = "pipeline"
    device: str = "auto"
    dtype: str = "auto"
    max_new_tokens: int = 50
    temperature: float = 0.0
    seed: int = 0
    quant: str = "auto"
    ignore_eos: bool = False
    prompt_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Completion:
    """What came of a Request. Times in seconds, sizes in bytes; None where there is nothing to measure.

    `first_token_s` runs from the call of generate to its first token (so it holds the prompt's own pass),
    `decode_tokens_per_s` counts the tokens after the first, `total_s` is all of it, imports included. `facts` is what
    the engine says of itself, for a record of the run; `notes` are sentences for a person whom the text may surprise.
    """

    model: str
    repo_id: str | None
    revision: str
    method: str
    device: str
    dtype: str | None
    quant: str | None
    seed: int
    prompt: str
    text: str
    prompt_tokens: int
    new_tokens: int
    token_ids: list[int]
    import_s: float
    load_s: float
    first_token_s: float
    decode_tokens_per_s: float | None
    total_s: float
    peak_rss_bytes: int
    device_memory_bytes: int | None
    versions: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The document of JSON=1."""
        return {name: value for name, value in asdict(self).items() if name not in ("facts", "notes")}
