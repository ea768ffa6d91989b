"""What llama.cpp makes of each token of a text: its log-probability, and the two most probable tokens in its place.

llama.cpp gives no log-probabilities of a prompt. So each position is a request of its own, in which a bias forces the
token that stands there; the log-probabilities are those from before the bias. What it worked on for the request before
is kept, so that each costs one token's work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kit.errors import KitError
from kit.llama_server import LlamaServer
from kit.quants import Quant
from kit.registry import Model

FORCE = 10_000.0  # far above what any logit can be


@dataclass(frozen=True)
class Position:
    """`logprob` of the token that stands there, in nats; `best` is the most probable token, `margin` how far the token
    that stands there is ahead of the best other one (below 0 where it is not the best).
    """

    logprob: float
    best: int
    margin: float


class LlamacppReplay:
    """Reads a model's GGUF on `device` (cpu or mps), for texts of up to `context` tokens. To be closed."""

    def __init__(self, model: Model, quant: Quant, device: str, context: int) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
        self._vocabulary = int(json.loads((model.folder / "config.json").read_text(encoding="utf-8"))["vocab_size"])
        # A token that is a whole character: any will do.
        self._decoy = next(token for token in range(self._vocabulary) if self._is_whole(token))
        self._server = LlamaServer(quant.path, device, context + 1, quant.name)
        self.ran = self._server.ran

    def close(self) -> None:
        self._server.close()

    def positions(self, ids: Sequence[int], first: int) -> Iterator[Position]:
        """Each position from `first` (1 or more) on. Raises KitError where llama.cpp does not answer as it should."""
        for place in range(first, len(ids)):
            yield self._position(list(ids[:place]), ids[place])

    def measure(self, ids: Sequence[int], first: int) -> tuple[list[float], list[float]]:
        """The log-probability of each token from position `first` on, and its margin over the best other one."""
        found = list(self.positions(ids, first))
        return [position.logprob for position in found], [position.margin for position in found]

    def _position(self, before: list[int], token: int) -> Position:
        if self._is_whole(token):
            said = self._ask(before, token, 2)
            logprob = float(said["logprob"])
        else:
            # llama.cpp says nothing about a token that ends inside a character; so another is forced, and this one is
            # looked up among the rest.
            said = self._ask(before, self._decoy, 500)
            listed = {each["id"]: each["logprob"] for each in said["top_logprobs"]}
            if token not in listed:
                said = self._ask(before, self._decoy, self._vocabulary)
                listed = {each["id"]: each["logprob"] for each in said["top_logprobs"]}
            logprob = float(listed[token])
        top = said["top_logprobs"]
        other = top[1] if top[0]["id"] == token else top[0]
        return Position(logprob, int(top[0]["id"]), logprob - float(other["logprob"]))

    def _ask(self, before: list[int], forced: int, count: int) -> dict[str, Any]:
        asked = {"prompt": before, "n_predict": 1, "n_probs": count, "cache_prompt": True, "samplers": ["top_k"]}
        answer = self._server.post("/completion", asked | {"top_k": 1, "logit_bias": [[forced, FORCE]]})
        try:
            said: dict[str, Any] = answer["completion_probabilities"][0]
            if said["id"] != forced:
                raise ValueError(f"token {said['id']} in place of {forced}")
            return said
        except (LookupError, ValueError) as error:
            raise KitError(f"llama.cpp's log-probabilities could not be read: {error}.", "please report it") from error

    def _is_whole(self, token: int) -> bool:
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        return bool(text) and "\ufffd" not in text
