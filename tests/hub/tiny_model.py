"""Models to serve: a tiny one that loads and generates, and files of any size. The same bytes every time."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy

from kit.files import sha256
from kit.formats.safetensors import bfloat16
from kit.models.registry import ModelFile
from kit.offline.hub_endpoints import ServedModel, served_folder

REVISION = "0123456789abcdef0123456789abcdef01234567"
CONTEXT, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 256, 64, 2, 4, 2, 16, 128
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>")
WORDS = "the of and to in is that it was for on are as with his they at be this have from or one had by".split()


def serve_folder(folder: Path, repo_id: str = "tiny/llama", revision: str = REVISION) -> ServedModel:
    """Every file of a folder, hashed as it is."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [ModelFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256(path)) for path in paths]
    return served_folder(repo_id, revision, folder, files)


def tiny_model(folder: Path) -> Path:
    """A Llama of some 100,000 parameters and 400 tokens (0.3 MB), as the Hub would hold it. Its text makes no sense."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens, merges = _vocabulary()
    first, last = len(tokens) - 2, len(tokens) - 1
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": first,
        "eos_token_id": last,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": CONTEXT,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": len(tokens),
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": first, "do_sample": False, "eos_token_id": last})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": SPECIAL[0],
            "clean_up_tokenization_spaces": False,
            "eos_token": SPECIAL[1],
            "model_max_length": CONTEXT,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    _write_json(folder / "tokenizer.json", _tokenizer(tokens, merges))
    _write_weights(folder / "model.safetensors", _shapes(len(tokens)))
    return folder


def big_file(path: Path, size: int) -> Path:
    """A file of `size` bytes, each MiB of it different (0.5 s for 500 MB)."""
    block = numpy.random.default_rng(0).bytes(1 << 20)
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, len(block)):
            file.write((struct.pack("<Q", start) + block[8:])[: size - start])
    return path


def _vocabulary() -> tuple[list[str], list[list[str]]]:
    """The 256 bytes in GPT-2's letters, and what merges some frequent words from them."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = sorted(ByteLevel.alphabet())
    merges = []
    for word in WORDS:
        whole = "Ġ"  # a blank
        for letter in word:
            if whole + letter not in tokens:
                merges.append([whole, letter])
                tokens.append(whole + letter)
            whole += letter
    return [*tokens, *SPECIAL], merges


def _tokenizer(tokens: list[str], merges: list[list[str]]) -> dict[str, object]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    begin = {"SpecialToken": {"id": SPECIAL[0], "type_id": 0}}
    one, two = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    ids = {token: index for index, token in enumerate(tokens)}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None, "ignore_merges": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[token], "content": token} | flags for token in SPECIAL],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, one],
            "pair": [begin, one, begin, two],
            "special_tokens": {SPECIAL[0]: {"id": SPECIAL[0], "ids": [ids[SPECIAL[0]]], "tokens": [SPECIAL[0]]}},
        },
        "decoder": byte_level,
        "model": model | {"vocab": ids, "merges": merges},
    }


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for layer in range(LAYERS):
        parts = {
            "input_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
            "post_attention_layernorm": (HIDDEN,),
            "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
            "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        }
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in parts.items()}
    return shapes | {"model.norm.weight": (HIDDEN,)}


def _write_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    random = numpy.random.default_rng(0)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, shape in shapes.items():
        values = numpy.ones(shape) if "norm" in name else random.standard_normal(shape) / math.sqrt(HIDDEN)
        start = len(data)
        data += bfloat16(values.astype(numpy.float32)).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
