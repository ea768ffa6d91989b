"""The Llama architecture: its tensors' names and order of rows, in transformers and in llama.cpp, and its RoPE."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import KitError
from kit.formats import llama_config

if TYPE_CHECKING:
    import numpy

# llama.cpp's tensor names -> transformers' (Llama architecture).
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
EMBEDDINGS = ("model.embed_tokens.weight", "token_embd.weight")
HEADS = ("lm_head.weight", "output.weight")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, with what transformers takes for what is not there. The model is examined already
    (kit/models/examine.py)."""
    return llama_config.completed(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def heads(config: dict[str, Any]) -> tuple[int, int, int]:
    """How many heads ask, how many hold keys and values, and how many numbers each has: of a completed config."""
    return config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that a completed config asks for, by transformers' names, in the order of names."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    table = config["vocab_size"], hidden
    expected: dict[str, tuple[int, ...]] = {EMBEDDINGS[0]: table, "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings"):
        expected[HEADS[0]] = table
    attention = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
    mlp = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}"
        expected |= {f"{start}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        for part, projections, biased in (
            ("self_attn", attention, config.get("attention_bias")),
            ("mlp", mlp, config.get("mlp_bias")),
        ):
            for name, shape in projections.items():
                expected[f"{start}.{part}.{name}_proj.weight"] = shape
                if biased:
                    expected[f"{start}.{part}.{name}_proj.bias"] = shape[:1]
    return dict(sorted(expected.items()))


def weight_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("blk."):
        return f"{TOP_NAMES[stem]}.{kind}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"


def tensor_names(tensors: Iterable[str], tied: bool) -> list[tuple[str, str]]:
    """llama.cpp's name and transformers' of each tensor, layer by layer. Raises KitError for one without a name."""
    tops = {theirs: ours for ours, theirs in TOP_NAMES.items()}
    layers = {theirs: ours for ours, theirs in LAYER_NAMES.items()}
    found = []
    for own in tensors:
        stem, end = own.rsplit(".", 1)
        if is_computed(own) or (stem == "lm_head" and tied):
            continue  # the second is a copy of the embedding
        parts = stem.split(".", 3)
        if stem in tops:
            found.append(((-1, stem), f"{tops[stem]}.{end}", own))
        elif parts[:2] == ["model", "layers"] and len(parts) == 4 and parts[3] in layers:
            found.append(((int(parts[2]), parts[3]), f"blk.{parts[2]}.{layers[parts[3]]}.{end}", own))
        else:
            raise KitError(f"the tensor {own} has no place in llama.cpp's Llama.")
    return [(name, own) for _, name, own in sorted(found)]


def is_computed(name: str) -> bool:
    """True for a tensor that old checkpoints hold and every framework computes anew."""
    return name.endswith("rotary_emb.inv_freq")


def permute(values: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Rows of a query or key projection, from transformers' order (halves) to llama.cpp's (rotary pairs side by side).

    The inverse of unpermute. `values`: (heads * head_dim, hidden).
    """
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def unpermute(values: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Rows of a query or key projection, from llama.cpp's order (rotary pairs side by side) to transformers' (halves).

    The inverse of `permute` in llama.cpp's convert_hf_to_gguf.py. `values`: (heads * head_dim, hidden).
    """
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def rope(config: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """theta, and the scaling ({} for none) of an examined config."""
    kind, settings = llama_config.rope(config)
    return float(settings["rope_theta"]), settings if kind == "llama3" else {}


def rope_freqs(theta: float, scaling: dict[str, Any], head_dim: int) -> numpy.ndarray:
    """Llama 3's scaling as llama.cpp takes it: what each of the head_dim / 2 frequencies is divided by, float32.

    Wavelengths beyond original / low_freq_factor are divided by `factor`, those below original / high_freq_factor not
    at all, and those between by what is between: transformers, modeling_rope_utils.py, _compute_llama3_parameters.
    """
    import numpy

    factor, low, high = (float(scaling[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    found = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (index / head_dim)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return numpy.array(found, dtype=numpy.float32)


def bytes_per_token(sizes: dict[str, int]) -> int:
    """Of the bytes of each tensor, by either name, those that each new token reads: every weight once; of an embedding
    that is not the head too, a row.
    """
    untied = any(name in sizes for name in HEADS)
    return sum(size for name, size in sizes.items() if not (untied and name in EMBEDDINGS))
