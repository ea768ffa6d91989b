"""The seam of engines: what every method is to whoever uses one. A method is a class, and a line in methods.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from kit.engines.devices import Device
from kit.engines.request import Request
from kit.errors import Command, KitError, WrongUsage
from kit.files import Progress, silent
from kit.models import examine
from kit.models.registry import Model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The number formats of 16 bits, as each framework names them.
SIXTEEN_BITS = ("bfloat16", "float16", "bf16")


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
class Position:
    """What a model makes of a token of a text: its `logprob`, in nats; `best` is the most probable token in its place,
    `margin` how far the token that stands there is ahead of the best other one (below 0 where it is not the best).
    """

    logprob: float
    best: int
    margin: float


class Engine(ABC):
    """A model, a device and a number format, through one method. To be closed.

    An instance says what can be said without loading weights: `device`, and why that one; the prompt's ids, and whether
    they fit; the file that has to be written first. Then `load`, and what needs the weights.
    """

    method: ClassVar[str]
    framework: ClassVar[str]  # what computes
    setting: ClassVar[str]  # the field of a Request, and the variable, that names the number format: dtype or quant
    packages: ClassVar[tuple[str, ...]]  # what the outcome depends on
    libraries_memory: ClassVar[int]  # bytes that a run holds beside the weights (docs/measurements.md)

    def __init__(self, model: Model, device: str = "auto", number_format: str = "auto") -> None:
        """Raises WrongUsage for a name that is unknown, KitError for a device that cannot run here, and for a model
        that the framework would not compute as it is meant."""
        self.model = model
        self.examined = examine.require(model, self.framework)
        self.device = self.choose(device, number_format)

    @classmethod
    @abstractmethod
    def formats(cls, model: Model) -> tuple[str, ...]:
        """The number formats that can be asked for, `auto` among them."""

    @abstractmethod
    def choose(self, device: str, number_format: str) -> Device:
        """The device and number format for what was asked, each with its reason."""

    @property
    def number_formats(self) -> dict[str, str | None]:
        """`dtype` and `quant` as they stand in reports: the method's own, and None for the other."""
        return {"dtype": None, "quant": None, self.setting: self.device.number_format}

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The text's token ids, through the model folder's own tokenizer."""

    @property
    @abstractmethod
    def backend(self) -> Tokenizer:
        """The tokenizer, as the tokenizers library has it."""

    def decode(self, ids: Sequence[int]) -> str:
        """The tokens' text, special tokens and all."""
        return str(self.backend.decode(list(ids), skip_special_tokens=False))

    def continuation(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
        """The text of new tokens as it stands behind the prompt's, without special tokens: alone, some decoders drop
        its first blank."""
        before = self.backend.decode(list(prompt_ids), skip_special_tokens=True)
        whole = str(self.backend.decode([*prompt_ids, *token_ids], skip_special_tokens=True))
        if whole.startswith(before):
            return whole[len(before) :]
        return str(self.backend.decode(list(token_ids), skip_special_tokens=True))

    def fit(self, request: Request) -> list[int]:
        """The prompt's ids. Raises WrongUsage where it does not fit into the context with the completion: nothing is
        cut."""
        ids = self.encode(request.prompt) if request.prompt_ids is None else list(request.prompt_ids)
        if beyond := [one for one in ids if one >= self.examined.rows]:
            raise WrongUsage(
                f"the prompt has {self.decode(beyond[:1])!r} in it, token {beyond[0]}, and the weights of "
                f"{self.model.name} have {self.examined.rows} rows: it has no numbers for that one.",
                "leave it out",
            )
        room = self.model.context - len(ids)
        if room < 1:
            raise WrongUsage(
                f"the prompt is {len(ids)} tokens long, and the context of {self.model.name} holds "
                f"{self.model.context}, prompt and completion together.",
                "shorten the prompt",
            )
        if request.max_new_tokens > room:
            raise WrongUsage(
                f"the prompt ({len(ids)} tokens) and MAX_NEW_TOKENS={request.max_new_tokens} do not fit into the "
                f"context of {self.model.name} ({self.model.context} tokens).",
                Command("run", MAX_NEW_TOKENS=room),
                ", or a shorter prompt",
            )
        return ids

    def needs_file(self) -> bool:
        """True where a file of the weights has to be written before they can be loaded."""
        return False

    def write_file(self, on_progress: Progress = silent) -> bool:
        """Writes the file where `needs_file`; True where it was written. Raises KitError."""
        return False

    @abstractmethod
    def weights_bytes(self) -> int:
        """Bytes of the weights, as they are in memory."""

    @abstractmethod
    def bytes_per_token(self) -> int:
        """Bytes of weights that each new token reads: every weight once; of an embedding that is not the head too, a
        row."""

    @abstractmethod
    def import_libraries(self) -> None:
        """Imports what a run needs, so that its time does not pass for the time of a load."""

    def memory_needed(self, context: int, slots: int) -> int:
        """Bytes that `load` and what follows take at most, as far as that is known before."""
        return self.weights_bytes() + self.libraries_memory

    @abstractmethod
    def load(self, context: int, slots: int = 1) -> None:
        """Puts the weights into memory, for texts of up to `context` tokens, `slots` of them at a time. Raises
        KitError, also where something else ran than what was asked for."""

    @abstractmethod
    def generate(self, request: Request, on_text: Callable[[str], None] = lambda text: None) -> Generated:
        """Completes the request's prompt; hands over the text as it comes."""

    def generate_all(self, requests: Iterable[Request], slots: int) -> Generator[tuple[int, Generated | KitError]]:
        """Completes each request, up to `slots` (as loaded) at a time. Gives its place among them, from 0 on, and what
        came of it or why it cannot be, as they are done; reads the requests as they are needed.

        With one slot the tokens are those of `generate`. With more, other kernels round otherwise: where two tokens are
        almost as likely, a text may go another way.
        """
        for place, request in enumerate(requests):
            try:
                yield place, self.generate(request)
            except KitError as error:
                yield place, error

    @abstractmethod
    def logprobs(self, ids: Sequence[int], first: int) -> list[Position]:
        """Each position of a text from `first` (1 or more) on, teacher-forced."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What computes, as it says of itself, under the library's name: version, threads, kernels."""

    def device_memory(self) -> int | None:
        """Bytes of the GPU's memory; None on the CPU."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Lets go of the weights."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def up_to_the_first(ends: Sequence[int], ids: list[int]) -> list[int]:
    """The ids up to and with the first end token among them."""
    place = next((place for place, one in enumerate(ids) if one in ends), len(ids))
    return ids[: place + 1]
