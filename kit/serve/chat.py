"""`make chat`: a text that grows in turns, with the model loaded once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from kit.engines.engine import Engine
from kit.engines.request import Request
from kit.errors import KitError

CONTEXT = 4096  # tokens, where nobody says


class Full(KitError):
    """There is no room for an answer: what stands in the way is kept."""


@dataclass
class Turn:
    said: str
    answer: str


@dataclass
class Chat:
    """What was said and answered, in a context of `context` tokens. `asked` has the settings of each answer.

    A base or tuned model goes on with the whole text so far, each line on one of its own; of an instruction-tuned one
    the turns become a prompt through its chat template.
    """

    engine: Engine
    asked: Request
    context: int
    turns: list[Turn] = field(default_factory=list)

    @property
    def has_template(self) -> bool:
        folder = self.engine.model.folder
        config = folder / "tokenizer_config.json"
        there = (folder / "chat_template.jinja").exists() or (
            config.exists() and "chat_template" in json.loads(config.read_text(encoding="utf-8"))
        )
        return self.engine.model.kind == "instruct" and there

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.engine.model.foundation.folder)

    def text(self) -> str:
        """All that was said and answered."""
        return "\n".join(turn.said + turn.answer for turn in self.turns)

    def prompt(self, said: str) -> str:
        """What the model is given."""
        if not self.has_template:
            return "\n".join([*([self.text()] if self.turns else []), said])
        messages = []
        for turn in self.turns:
            messages += [{"role": "user", "content": turn.said}, {"role": "assistant", "content": turn.answer}]
        messages.append({"role": "user", "content": said})
        text = str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        begin = self.engine.examined.begin
        if begin is not None and self.engine.encode(text)[:2] == [begin, begin]:
            text = text.removeprefix(self.engine.decode([begin]))  # the tokenizer puts its own in front
        return text

    def say(self, said: str, on_text: Callable[[str], None]) -> Turn:
        """The turn, its answer handed over as it comes; one that Ctrl-C stops is kept as far as it came.

        Raises Full where there is no room for it: nothing is dropped unasked.
        """
        prompt = self.prompt(said)
        used = len(self.engine.encode(prompt))
        room = self.context - used
        if room < 1:
            raise Full(
                f"the context is full: {used} tokens with this one, and it holds {self.context}.",
                "/drop forgets the oldest turn, /undo the last one, /reset all of them",
            )
        turn = Turn(said, "")

        def keep(piece: str) -> None:
            turn.answer += piece
            on_text(piece)

        request = replace(self.asked, prompt=prompt, max_new_tokens=min(self.asked.max_new_tokens, room))
        try:
            self.engine.generate(request, keep)
        except KeyboardInterrupt:
            on_text(" …")
        self.turns.append(turn)
        return turn
