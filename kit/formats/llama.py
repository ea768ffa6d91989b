"""The Llama architecture: its tensors' names and order of rows, in transformers and in llama.cpp, and its RoPE."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import Command, KitError

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
INSTEAD = Command("run", METHOD="manual")  # of what cannot be converted
HEADS = ("lm_head.weight", "output.weight")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises KitError for another architecture."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
        raise KitError(
            f"{folder / 'config.json'} is not of the Llama architecture without biases; the kit converts no other.",
            INSTEAD,
        )
    return config


def heads(config: dict[str, Any]) -> tuple[int, int, int]:
    """How many heads ask, how many hold keys and values, and how many numbers each has."""
    count: int = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // count
    return count, config.get("num_key_value_heads", count), head_dim


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a Llama model with tied embeddings, by transformers' names, in the order of names."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    found: dict[str, tuple[int, ...]] = {EMBEDDINGS[0]: (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}"
        found |= {f"{start}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        found |= {f"{start}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        found[f"{start}.mlp.down_proj.weight"] = (hidden, inner)
        found |= {f"{start}.self_attn.{name}_proj.weight": (keys, hidden) for name in ("k", "v")}
        found[f"{start}.self_attn.q_proj.weight"] = (queries, hidden)
        found[f"{start}.self_attn.o_proj.weight"] = (hidden, queries)
    return dict(sorted(found.items()))


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
        if own.endswith("rotary_emb.inv_freq") or (stem == "lm_head" and tied):
            continue  # computed anew; and a copy of the embedding
        parts = stem.split(".", 3)
        if stem in tops:
            found.append(((-1, stem), f"{tops[stem]}.{end}", own))
        elif parts[:2] == ["model", "layers"] and len(parts) == 4 and parts[3] in layers:
            found.append(((int(parts[2]), parts[3]), f"blk.{parts[2]}.{layers[parts[3]]}.{end}", own))
        else:
            raise KitError(f"the tensor {own} has no place in llama.cpp's Llama.", INSTEAD)
    return [(name, own) for _, name, own in sorted(found)]


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
    """theta, and the scaling ({} for none), from either spelling of config.json. Raises KitError for another kind."""
    said = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(said.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
    kind = said.get("rope_type") or said.get("type") or "default"
    if kind not in ("default", "llama3"):
        raise KitError(f"RoPE scaling of the kind {kind!r} is not what the kit converts.", INSTEAD)
    return theta, said if kind == "llama3" else {}


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
