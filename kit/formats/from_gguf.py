"""A plain model folder out of a GGUF file: config.json, tokenizer, weights in bfloat16.

The files that transformers' own two conversions write, from the same file (5 s for the tokenizer and 12 to 14 s for the
weights), in about 2 s. The pre-tokenizer is the one the file names (each digit alone), which transformers leaves out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.errors import KitError
from kit.formats import llama, safetensors
from kit.formats.gguf import GgufFile

CONTROL_TOKEN = 3  # tokenizer.ggml.token_type of a special token


def write(gguf: GgufFile, folder: Path, on_progress: Callable[[float], None] = lambda share: None) -> None:
    """Writes the folder's files. `on_progress` gets the share of the tensors written, 0 to 1.

    Raises KitError for an architecture or a tokenizer other than Llama's with byte-level BPE.
    """
    if gguf.metadata.get("general.architecture") != "llama" or gguf.metadata.get("tokenizer.ggml.model") != "gpt2":
        raise KitError(f"{gguf.path} is not of the Llama architecture with a byte-level BPE tokenizer.")
    write_json(folder / "config.json", config(gguf))
    write_json(folder / "generation_config.json", generation_config(gguf))
    write_json(folder / "tokenizer_config.json", tokenizer_config(gguf))
    write_json(folder / "tokenizer.json", tokenizer(gguf), indent=None)
    if template := gguf.metadata.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
    write_weights(gguf, folder / "model.safetensors", on_progress)


def config(gguf: GgufFile) -> dict[str, Any]:
    """config.json, as transformers' LlamaConfig reads it."""
    import numpy

    value = {key.removeprefix("llama."): item for key, item in gguf.metadata.items()}
    # The file holds a float32 of 1e-05, which Python prints as 9.999999747378752e-06.
    epsilon = float(str(numpy.float32(value["attention.layer_norm_rms_epsilon"])))
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": value["tokenizer.ggml.bos_token_id"],
        "dtype": "bfloat16",
        "eos_token_id": value["tokenizer.ggml.eos_token_id"],
        "head_dim": value["rope.dimension_count"],
        "hidden_act": "silu",
        "hidden_size": value["embedding_length"],
        "intermediate_size": value["feed_forward_length"],
        "max_position_embeddings": value["context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": value["attention.head_count"],
        "num_hidden_layers": value["block_count"],
        "num_key_value_heads": value["attention.head_count_kv"],
        "pad_token_id": value["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": epsilon,
        "rope_parameters": {"rope_theta": value["rope.freq_base"], "rope_type": "default"},
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "vocab_size": value["vocab_size"],
    }


def generation_config(gguf: GgufFile) -> dict[str, Any]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {name: gguf.metadata[f"tokenizer.ggml.{key}_token_id"] for name, key in names.items()}


def tokenizer_config(gguf: GgufFile) -> dict[str, Any]:
    tokens = gguf.metadata["tokenizer.ggml.tokens"]
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    return {
        **{name: tokens[gguf.metadata[f"tokenizer.ggml.{key}_token_id"]] for name, key in names.items()},
        "clean_up_tokenization_spaces": False,
        "model_max_length": gguf.metadata["llama.context_length"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def tokenizer(gguf: GgufFile) -> dict[str, Any]:
    """tokenizer.json of the tokenizers library: byte-level BPE.

    Raises KitError for a pre-tokenizer other than `smollm`, whose rule is "each digit alone, then GPT-2's pattern"
    (llama.cpp, llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM).
    """
    if (pre := gguf.metadata.get("tokenizer.ggml.pre")) != "smollm":
        raise KitError(f"{gguf.path} asks for the pre-tokenizer {pre!r}; the kit converts smollm's only.")
    tokens = gguf.metadata["tokenizer.ggml.tokens"]
    kinds = gguf.metadata["tokenizer.ggml.token_type"]
    digits = {"type": "Digits", "individual_digits": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": token} | flags
            for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
            **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False),
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in gguf.metadata["tokenizer.ggml.merges"]],
        },
    }


def write_weights(gguf: GgufFile, path: Path, on_progress: Callable[[float], None]) -> None:
    """model.safetensors, a tensor at a time, so that memory holds one tensor and not the model."""
    heads, kv_heads = (gguf.metadata[f"llama.attention.head_count{kind}"] for kind in ("", "_kv"))
    shapes = {llama.weight_name(tensor.name): tensor.shape for tensor in gguf.tensors.values()}
    with path.open("wb") as file:
        file.write(safetensors.header(shapes))
        for done, name in enumerate(gguf.tensors, start=1):
            values = gguf.decode(name)
            if ".attn_q." in name or ".attn_k." in name:
                values = llama.unpermute(values, heads if ".attn_q." in name else kv_heads)
            file.write(safetensors.bfloat16(values).data)
            on_progress(done / len(gguf.tensors))


def write_json(path: Path, value: dict[str, Any], indent: int | None = 2) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8", newline="")
