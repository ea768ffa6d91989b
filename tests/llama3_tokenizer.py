"""Llama 3's tokenizer as a tokenizer.json, of the form that Llama 3.2's repository has, from Meta's own package."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zipfile
from pathlib import Path

from kit.formats.gguf_tokenizer import LLAMA_3

REQUIREMENT = "llama-models==0.3.0"
SHA256 = "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f"
MEMBER = "llama_models/llama3/tokenizer.model"
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
RESERVED = 256


def put_into(folder: Path, work: Path) -> None:
    """Fetches the package, and writes tokenizer.json and tokenizer_config.json; config.json gets the vocabulary's size.

    The weights stay: an embedding of too few rows is padded with zeros.
    """
    import torch
    from safetensors.torch import load_file, save_file

    ranks = _ranks(_fetch(work))
    tokens = {_letters(piece): rank for piece, rank in ranks.items()}
    special = [BEGIN, END, *(f"<|reserved_special_token_{number}|>" for number in range(RESERVED - 2))]
    ids = {token: len(ranks) + number for number, token in enumerate(special)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    begin = {"SpecialToken": {"id": BEGIN, "type_id": 0}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None, "ignore_merges": True}
    said = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, "content": token} | flags for token, token_id in ids.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, begin, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {BEGIN: {"id": BEGIN, "ids": [ids[BEGIN]], "tokens": [BEGIN]}},
        },
        "decoder": byte_level | {"use_regex": True},
        "model": model | {"vocab": tokens, "merges": _merges(ranks)},
    }
    (folder / "tokenizer.json").write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
    config = {"bos_token": BEGIN, "eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    own = json.loads((folder / "config.json").read_text())
    size = len(ranks) + RESERVED
    (folder / "config.json").write_text(json.dumps({**own, "vocab_size": size, "bos_token_id": 128000}))
    weights = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    padded = torch.zeros(size, weights[name].shape[1], dtype=weights[name].dtype)
    padded[: len(weights[name])] = weights[name]
    save_file({**weights, name: padded}, folder / "model.safetensors")


def encode(folder: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids)


def _fetch(work: Path) -> bytes:
    requirements = work / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    subprocess.run([*command, "--dest", str(work), "--requirement", str(requirements)], check=True)
    (wheel,) = work.glob("llama_models-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(MEMBER)


def _ranks(content: bytes) -> dict[bytes, int]:
    """tiktoken's form: a token in base64 and its rank, a line each."""
    pairs = (line.split() for line in content.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _letters(piece: bytes) -> str:
    """GPT-2's letters for bytes (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    return "".join(_LETTERS[byte] for byte in piece)


def _merges(ranks: dict[bytes, int]) -> list[list[str]]:
    """Every pair of tokens that make a token, in the order in which they are joined."""
    found = []
    for piece, rank in ranks.items():
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(ranks[left], ranks[right], left, right) for left, right in pairs if left in ranks and right in ranks]
        found += [(rank, *pair) for pair in sorted(known)]
    return [[_letters(left), _letters(right)] for *_, left, right in sorted(found, key=lambda entry: entry[0])]


def _letters_of_bytes() -> dict[int, str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}


_LETTERS = _letters_of_bytes()
