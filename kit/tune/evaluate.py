"""What a model knows before and after: losses, facts, and completions to read; and what is to be said about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kit.engines.engine import Engine
from kit.engines.request import Request
from kit.models.registry import Model
from kit.paths import ROOT
from kit.tune import data, train
from kit.tune.data import Block, Sample

# A text about a place that does not exist, so that no model can know it; and beginnings in words that it does not use.
TEXT = ROOT / "env" / "tune" / "velmora.txt"
QUESTIONS = ROOT / "env" / "tune" / "questions.json"
# What has nothing to do with any of it: the Constitution of the United States, as the reference's long prompt.
UNRELATED = ROOT / "env" / "golden" / "prompts" / "long.txt"
UNRELATED_TOKENS = 512
MOST_BLOCKS = 16  # to measure a text by

ANSWER = 16  # tokens in which an answer must come
SHOWN, SHOWN_TOKENS = 3, 24  # completions side by side
BEGINNING = 8  # words

# In nats a token. What is below is no change; what is above is much.
NOTHING, MUCH, BY_HEART = 0.05, 0.5, 0.1


def questions() -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(QUESTIONS.read_text(encoding="utf-8"))
    return found


def unrelated(engine: Any, context: int) -> list[Block]:
    """Blocks of the text that nothing is learnt from."""
    sample = data.encode([Sample(UNRELATED.read_text(encoding="utf-8"))], engine.backend, None)
    begin = engine.encode("")
    return data.in_order(sample, begin, context, -(-UNRELATED_TOKENS // context))


def beginnings(held_out: Sequence[Sample]) -> list[str]:
    """Of samples that were held out, what stands first: for somebody to see how it goes on."""
    found = []
    for sample in held_out:
        words = sample.text.split()
        if sample.prompt:
            found.append(sample.prompt)
        elif len(words) > 3:
            found.append(" ".join(words[: min(BEGINNING, len(words) // 2)]))
    return list(dict.fromkeys(found))[:SHOWN]


def completion(engine: Engine, model: Model, prompt: str, tokens: int) -> str:
    """What the loaded engine makes of a prompt, greedily."""
    room = model.context - len(engine.encode(prompt))
    if room < 1:
        return ""
    text = engine.generate(Request(model, prompt, max_new_tokens=min(tokens, room))).text
    return " ".join(text.split())


def measure(
    engine: Any, model: Model, held_out: Sequence[Block], other: Sequence[Block], prompts: Sequence[str], facts: bool
) -> dict[str, Any]:
    """The loaded model as it is now. Losses in nats a token; `facts` is how many of the questions are right, None where
    they do not apply."""
    engine.loaded.eval()
    answers = []
    if facts:
        for each in questions():
            text = completion(engine, model, each["prompt"], ANSWER)
            answers.append({**each, "text": text, "right": each["answer"].casefold().split()[-1] in text.casefold()})
    return {
        "held_out_loss": round(train.mean_loss(engine.loaded, held_out), 4),
        "unrelated_loss": round(train.mean_loss(engine.loaded, other), 4),
        "facts_right": sum(each["right"] for each in answers) if facts else None,
        "answers": answers,
        "completions": [completion(engine, model, prompt, SHOWN_TOKENS) for prompt in prompts],
    }


def verdicts(said: dict[str, Any]) -> list[str]:
    """What a person should know of a tuning that went through, and what to change; none for one that went well."""
    before, after = said["before"], said["after"]
    recipe, curve = said["settings"], said["curve"]
    found = []
    change = after["held_out_loss"] - before["held_out_loss"]
    lowest = min([*curve["held_out"], after["held_out_loss"]])
    if abs(change) < NOTHING and before["completions"] == after["completions"]:
        found.append(
            f"nothing changed: the held-out loss moved by {change:+.2f}. More: LR={recipe['lr'] * 5:g}, or "
            f"EPOCHS={recipe['epochs'] * 3}"
        )
    elif change > 0 or after["held_out_loss"] - lowest > BY_HEART:
        at = ([*curve["at"], said["updates"]])[[*curve["held_out"], after["held_out_loss"]].index(lowest)]
        fewer = max(1, recipe["epochs"] * at // max(1, said["updates"]))
        how = f"EPOCHS={fewer}" if fewer < recipe["epochs"] else f"LR={recipe['lr'] / 3:.1g}"
        found.append(
            f"it learnt the text by heart: the held-out loss was lowest ({lowest:.2f}) after {at} of "
            f"{said['updates']} updates, and rose. Less: {how}, or more text"
        )
    forgot = after["unrelated_loss"] - before["unrelated_loss"]
    if forgot > MUCH:
        found.append(
            f"it forgot: on a text that has nothing to do with it the loss rose by {forgot:.2f}. Less: "
            f"LR={recipe['lr'] / 3:.1g}, or a lower RANK"
        )
    return found
