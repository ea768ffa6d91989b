"""Llama models of 0.2 MB by recipe, each with one thing about it: what the methods are held to each other with.

Their numbers are exact in bfloat16 and float16, so that every method computes with the same ones, and a seed is taken
whose greedy tokens lead by a clear margin: llama.cpp rounds what it multiplies with them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from kit.files import sha256
from kit.formats import llama, llama_config
from kit.formats.gguf_tokenizer import LLAMA_3
from kit.models.examine import INDEX, SINGLE
from kit.models.registry import Model, ModelFile
from tests.hub.tiny_model import SPECIAL, tiny_model

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
DIGITS = {"type": "Digits", "individual_digits": True}
CONFIG = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}

Change = Callable[[Path], None]


@dataclass(frozen=True)
class Recipe:
    """`config` and `generation` go over the two files' settings, None takes one out; `change` does what it likes to the
    finished folder. `runs` names the methods that must give bare transformers' tokens: the others must refuse.
    """

    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16
    tokenizer: str = "smollm"
    change: Change = lambda folder: None
    runs: tuple[str, ...] = ("pipeline", "manual", "llamacpp")
    prompt: str = "one of 12 and the 👋 that"


def edit(path: Path, **values: Any) -> None:
    """Puts values into a JSON file; None takes one out."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = {key: value for key, value in {**content, **values}.items() if key not in values or value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def bake(recipe: Recipe, folder: Path, seed: int) -> None:
    """Writes the model's folder."""
    shutil.rmtree(folder, ignore_errors=True)
    tiny_model(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    edit(folder / "config.json", **{**CONFIG, "vocab_size": rows, "num_key_value_heads": 2, **recipe.config})
    edit(folder / "generation_config.json", **recipe.generation)
    {"smollm": smollm, "llama3": llama3, "gpt2": lambda folder: None, "sentencepiece": sentencepiece}[recipe.tokenizer](
        folder
    )
    config = llama_config.completed(json.loads((folder / "config.json").read_text()))
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in llama.shapes(config).items():
        # Logits far from each other, by large embeddings; and attention that does not tip over for a rounding.
        large = name in (llama.EMBEDDINGS[0], llama.HEADS[0])
        scale = 0.1 if len(shape) == 1 else 0.5 if large else 1.5 / shape[-1] ** 0.5
        values = torch.randn(shape, generator=draw) * scale
        values = values + 1 if name.endswith("norm.weight") else values
        tensors[name] = (values * 256).round().clamp(-2000, 2000).div(256).bfloat16().to(recipe.dtype)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    recipe.change(folder)


def model_of(folder: Path) -> Model:
    """The folder as the registry would have it: every file pinned as it is."""
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.suffix != ".gguf"]
    pins = tuple(ModelFile(path.name, path.stat().st_size, sha256(path)) for path in files)
    return Model(folder.name, "Tiny", "base", "MIT", "some/tiny", f"{0:040}", False, 256, pins, None)


# --- Tokenizers -------------------------------------------------------------------------------------------------------


def smollm(folder: Path) -> None:
    """Each digit alone, then GPT-2's pattern."""
    byte_level = json.loads((folder / "tokenizer.json").read_text())["pre_tokenizer"]
    steps = {"type": "Sequence", "pretokenizers": [DIGITS, byte_level]}
    edit(folder / "tokenizer.json", pre_tokenizer=steps)


def llama3(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False}
    byte_level = {**tokenizer["pre_tokenizer"], "use_regex": False}
    steps = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    edit(folder / "tokenizer.json", pre_tokenizer=steps, model={**tokenizer["model"], "ignore_merges": True})


def sentencepiece(folder: Path) -> None:
    """Bytes as tokens of their own, and a mark for a blank, which the decoder takes off the front."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    rows = len(tokenizer["model"]["vocab"])
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    merges = [["▁", letter] for letter in "abcdef"]
    pieces += ["".join(merge) for merge in merges]
    pieces += [f"<unused{place}>" for place in range(rows - len(pieces) - 2)]
    vocabulary = {piece: place for place, piece in enumerate([*pieces[: rows - 2], *SPECIAL])}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    edit(
        folder / "tokenizer.json",
        model={**tokenizer["model"], "byte_fallback": True, "vocab": vocabulary, "merges": merges},
        normalizer={
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
    )


# --- What may be wrong with a folder ----------------------------------------------------------------------------------


def settings_of(name: str, **values: Any) -> Change:
    return lambda folder: edit(folder / name, **values)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def alter(folder: Path) -> None:
        values = load_file(folder / SINGLE)
        change(values)
        save_file({name: value.clone() for name, value in values.items()}, folder / SINGLE, {"format": "pt"})

    return alter


def sharded(folder: Path) -> None:
    values = load_file(folder / SINGLE)
    names = sorted(values)
    parts = dict(zip(SHARDS, (names[::2], names[1::2]), strict=True))
    for path, own in parts.items():
        save_file({name: values[name] for name in own}, folder / path, {"format": "pt"})
    table = {name: path for path, own in parts.items() for name in own}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    (folder / SINGLE).unlink()


def sharded_beside(name: str) -> Change:
    """Shards, and beside them other weights of that name."""

    def alter(folder: Path) -> None:
        other = {key: value * 2 for key, value in load_file(folder / SINGLE).items()}
        sharded(folder)
        save_file(other, folder / name, {"format": "pt"})

    return alter


def added_token(place: int | None = None) -> Change:
    """A token of its own in the last row but two, or that far behind the rows."""

    def alter(folder: Path) -> None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        rows = json.loads((folder / "config.json").read_text())["vocab_size"]
        added = {"id": rows - 3 if place is None else rows + place, "content": "<own>", **flags}
        vocabulary = {piece: each for piece, each in tokenizer["model"]["vocab"].items() if each != added["id"]}
        vocabulary |= {"<own>": added["id"]} if place is None else {}
        model = {**tokenizer["model"], "vocab": vocabulary}
        model["merges"] = [merge for merge in model["merges"] if "".join(merge) in vocabulary]
        edit(folder / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], added], model=model)

    return alter


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


def misplaced_token(folder: Path) -> None:
    """An added token at an id that another one has."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    added = {**tokenizer["added_tokens"][0], "content": "<own>", "id": 9}
    edit(folder / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], added])
