"""The tokens of one completion as they arrive: their ids, their times, and their text as soon as it is whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class TokenStream:
    """A streamer for transformers' generate(): it is put() the prompt's ids first, then each new token.

    A token may end in the middle of a character (an emoji is several tokens): its text waits for the rest.
    generate() hands over ids that it has copied to the CPU, so on MPS the clock is read after the GPU is done.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._on_text = on_text
        self._pieces: list[str] = []
        self.prompt_ids: list[int] | None = None
        self.token_ids: list[int] = []
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        ids = value.flatten().tolist()
        if self.prompt_ids is None:
            self.prompt_ids = ids
            return
        for token_id in ids:
            self.times.append(time.perf_counter())
            self.token_ids.append(token_id)
            self._say(self._decoder.step(self._tokenizer.backend_tokenizer, token_id))

    def end(self) -> None:
        """Says what is left: the bytes of a character that the last token did not finish."""
        whole = self._tokenizer.backend_tokenizer.decode(self.token_ids, skip_special_tokens=True)
        self._say(whole[len(self.text) :])

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def _say(self, piece: str | None) -> None:
        if piece:
            self._pieces.append(piece)
            self._on_text(piece)
