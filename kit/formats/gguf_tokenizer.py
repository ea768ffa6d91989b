"""A model folder's tokenizer.json, as llama.cpp reads a tokenizer: byte-level BPE with one of its pre-tokenizers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import KitError

# tokenizer.ggml.token_type, as llama.h has it (LLAMA_TOKEN_TYPE_…).
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# Llama 3's pattern: https://github.com/meta-llama/llama-models, models/llama3/tokenizer.py.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class GgufTokenizer:
    """`pre` names the pre-tokenizer; `tokens` and `types` stand by id; `special` ids by name: all as llama.cpp says."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]
    adds_bos: bool
    chat_template: str


def read(folder: Path, size: int) -> GgufTokenizer:
    """The tokenizer of a model folder whose vocabulary has `size` entries. Raises KitError for one of another kind."""
    path = folder / "tokenizer.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    model = said["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise KitError(f"{path.name} is no byte-level BPE tokenizer, and the kit converts no other.")
    pre = _pre_tokenizer(said, path)
    tokens = [f"[UNUSED{token_id}]" for token_id in range(size)]
    types = [UNUSED] * size
    # One beyond the rows is a token that the model has no numbers for.
    for token, token_id in model["vocab"].items():
        if token_id < size:
            tokens[token_id], types[token_id] = token, NORMAL
    for added in said["added_tokens"]:
        if added["id"] < size:
            tokens[added["id"]] = added["content"]
            types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = _special(config, {token: token_id for token_id, token in enumerate(tokens)})
    adds_bos = _adds_bos(path, special.get("bos"))
    return GgufTokenizer(pre, tokens, types, merges, special, adds_bos, _chat_template(folder, config))


def _pre_tokenizer(said: dict[str, Any], path: Path) -> str:
    """`smollm` for "each digit alone, then GPT-2's pattern", `llama-bpe` for Llama 3's; both whatever the ids are.

    With the second llama.cpp takes a piece that is a token as it stands (ignore_merges), with the first it never does.
    """
    found = said["pre_tokenizer"] or {}
    steps = [] if said["normalizer"] else found.get("pretokenizers", [found])
    kinds = [step.get("type") for step in steps]
    if kinds in (["Digits", "ByteLevel"], ["Split", "ByteLevel"]) and not steps[1]["add_prefix_space"]:
        whole = said["model"].get("ignore_merges", False)
        if kinds[0] == "Digits" and steps[0]["individual_digits"] and steps[1]["use_regex"] and not whole:
            return "smollm"
        isolated = steps[0].get("behavior") == "Isolated" and not steps[0].get("invert")
        if steps[0].get("pattern") == {"Regex": LLAMA_3} and isolated and not steps[1]["use_regex"] and whole:
            return "llama-bpe"
    raise KitError(
        f"{path.name} cuts text in a way that the kit has no name for in llama.cpp ({', '.join(map(str, kinds))})."
    )


def _chat_template(folder: Path, config: dict[str, Any]) -> str:
    """From a file of its own, or from tokenizer_config.json, where older folders have it; "" for none."""
    path = folder / "chat_template.jinja"
    said = path.read_text(encoding="utf-8") if path.exists() else config.get("chat_template")
    return said if isinstance(said, str) else ""  # a list is several, of which none is the one


def _special(config: dict[str, Any], ids: dict[str, int]) -> dict[str, int]:
    """The ids of the tokens that tokenizer_config.json names."""
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    said = {name: config.get(key) for name, key in names.items()}
    tokens = {name: token.get("content") if isinstance(token, dict) else token for name, token in said.items()}
    return {name: ids[token] for name, token in tokens.items() if token in ids}


def _adds_bos(path: Path, bos: int | None) -> bool:
    """Whether the tokenizer itself puts the token in front: it is asked, whatever its configuration says."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(path)).encode("a").ids
    return len(ids) > 1 and ids[0] == bos
