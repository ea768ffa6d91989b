"""What is asked of a model and what comes of it, the same for every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from kit.errors import WrongUsage
from kit.models.registry import Model

DEFAULT_PROMPT = "Hello, who or what are you ?"


@dataclass(frozen=True)
class Request:
    """What to complete and how. `temperature` 0 is greedy decoding; above it, tokens are drawn, seeded by `seed`.

    `dtype` is for pipeline and manual, `quant` for llamacpp. With `ignore_eos` no token ends the text early.
    """

    model: Model
    prompt: str
    method: str = "pipeline"
    device: str = "auto"
    dtype: str = "auto"
    max_new_tokens: int = 50
    temperature: float = 0.0
    seed: int = 0
    quant: str = "auto"
    ignore_eos: bool = False


@dataclass(frozen=True)
class Completion:
    """What came of a Request. Times in seconds, sizes in bytes; None where there is nothing to measure.

    `first_token_s` runs from the call of generate to its first token (so it holds the prompt's own pass),
    `decode_tokens_per_s` counts the tokens after the first, `total_s` is all of it, imports included.
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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Generated:
    """What a method gave. `first_at` and `last_at` are readings of time.perf_counter(): of the first arrival, which had
    `first_tokens` tokens, and of the last.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    first_at: float
    first_tokens: int
    last_at: float

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Of the tokens after the first arrival; None where there was no other."""
        tokens, seconds = len(self.token_ids) - self.first_tokens, self.last_at - self.first_at
        return tokens / seconds if tokens > 0 and seconds > 0 else None


@dataclass(frozen=True)
class Engine:
    """A model in memory: on which `device` it is in which number format, and how it completes a request.

    `generate(request, on_text)` hands over the text as it comes; `device_memory()` is in bytes, None on the CPU. To be
    closed.
    """

    device: str
    dtype: str | None
    quant: str | None
    packages: tuple[str, ...]
    generate: Callable[[Request, Callable[[str], None]], Generated]
    device_memory: Callable[[], int | None]
    close: Callable[[], None] = lambda: None


def check_room(request: Request, tokens: int) -> None:
    """Raises WrongUsage where a prompt of `tokens` and the completion do not fit into the context: nothing is cut."""
    room = request.model.context - tokens
    if room < 1:
        raise WrongUsage(
            f"the prompt is {tokens} tokens long, and the context of {request.model.name} holds "
            f"{request.model.context}, prompt and completion together.",
            "shorten the prompt",
        )
    if request.max_new_tokens > room:
        raise WrongUsage(
            f"the prompt ({tokens} tokens) and MAX_NEW_TOKENS={request.max_new_tokens} do not fit into the context of "
            f"{request.model.name} ({request.model.context} tokens).",
            f"make run MAX_NEW_TOKENS={room}, or a shorter prompt",
        )
