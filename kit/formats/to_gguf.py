"""A GGUF file out of a plain model folder, for llama.cpp: the same weights under its names, in one of its formats.

One architecture, Llama's, with the gguf package's writer and quantisers. (llama.cpp's own converter is in no well-kept
package of the index, and loads torch and transformers.)
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.environment import machine
from kit.errors import KitError
from kit.formats import gguf_tokenizer
from kit.formats.from_gguf import LAYER_NAMES, TOP_NAMES
from kit.formats.safetensors import SafetensorsFile, as_float32

if TYPE_CHECKING:
    import numpy
    from gguf import GGUFWriter

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    import numpy
    from gguf import GGUFWriter


# Counts up when the same folder would give another file.
VERSION = 2
# QUANT -> the type of every matrix, the embedding (which is the head too) included. llama.cpp's own q4_0 keeps that one
# in 6 bits: better text, and a fifth fewer tokens a second at 1B, where it is a quarter of all weights.
TYPES = {"bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
FILE_TYPES = {"bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}

Progress = Callable[[float], None]


def convert(
    folder: Path, weights: list[Path], title: str, quant: str, path: Path, on_progress: Progress = lambda share: None
) -> None:
    """Writes `path` from the folder's config.json and tokenizer and the safetensors files `weights`.

    The same input gives the same bytes. `on_progress` gets the share that is written, 0 to 1. Raises KitError for an
    architecture, a RoPE scaling or a tokenizer that the kit cannot convert.
    """
    from gguf import GGUFWriter

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _require_llama(config, folder)
    source = SafetensorsFile(weights)
    writer = GGUFWriter(path, "llama")
    try:
        _add_metadata(writer, config, title, quant)
        _add_tokenizer(writer, folder, config["vocab_size"])
        _write_tensors(writer, source, config, quant, on_progress)
    finally:
        writer.close()


def rope(config: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """theta, and the scaling ({} for none), from either spelling of config.json. Raises KitError for another kind."""
    said = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(said.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
    kind = said.get("rope_type") or said.get("type") or "default"
    if kind not in ("default", "llama3"):
        raise KitError(f"RoPE scaling of the kind {kind!r} is not what the kit converts.", "make run METHOD=manual")
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


def _require_llama(config: dict[str, Any], folder: Path) -> None:
    if config.get("model_type") != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
        raise KitError(
            f"{folder / 'config.json'} is not of the Llama architecture without biases; the kit converts no other.",
            "make run METHOD=manual",
        )


def _add_metadata(writer: GGUFWriter, config: dict[str, Any], title: str, quant: str) -> None:
    from gguf import LlamaFileType
    from gguf.constants import GGML_QUANT_VERSION

    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    theta, _ = rope(config)
    writer.add_name(title)
    writer.add_file_type(LlamaFileType[FILE_TYPES[quant]])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: GGUFWriter, folder: Path, size: int) -> None:
    found = gguf_tokenizer.read(folder, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.types)
    writer.add_token_merges(found.merges)
    writer.add_add_bos_token(found.adds_bos)
    for name, token_id in found.special.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token_id)
    if found.chat_template:
        writer.add_chat_template(found.chat_template)


def _write_tensors(
    writer: GGUFWriter, source: SafetensorsFile, config: dict[str, Any], quant: str, on_progress: Progress
) -> None:
    from concurrent.futures import ThreadPoolExecutor  # here: a run that writes nothing does without

    import numpy
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    theta, scaling = rope(config)
    kind = GGMLQuantizationType[TYPES[quant]]
    block, block_bytes = GGML_QUANT_SIZES[kind]
    names = dict(tensor_names(source, bool(config.get("tie_word_embeddings"))))
    freqs = rope_freqs(theta, scaling, head_dim) if scaling else None
    if freqs is not None:
        writer.add_tensor_info("rope_freqs.weight", freqs.shape, freqs.dtype, freqs.nbytes)
    for name, own in names.items():
        shape = source.tensors[own].shape
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, numpy.dtype(numpy.float32), 4 * shape[0])
            continue
        if shape[-1] % block:
            raise KitError(
                f"{own} has rows of {shape[-1]}, and {quant} takes multiples of {block}.", "make gguf QUANT=bf16"
            )
        size = shape[0] * shape[1] // block * block_bytes
        writer.add_tensor_info(name, shape, numpy.dtype(numpy.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if freqs is not None:
        append(writer, [freqs])
    total, done = sum(source.tensors[own].count for own in names.values()), 0
    kv_heads = config.get("num_key_value_heads", heads)
    with ThreadPoolExecutor(machine.performance().count) as pool:
        for name, own in names.items():
            permuted = heads if ".attn_q." in name else kv_heads if ".attn_k." in name else None
            append(writer, encoded(source, own, kind, permuted, pool))
            done += source.tensors[own].count
            on_progress(done / total)


# --- The tensors as a GGUF file has them: llama.cpp's names, order of rows, blocks ------------------------------------


PIECE = 1 << 20  # numbers that a thread works on at a time


def tensor_names(source: SafetensorsFile, tied: bool) -> Iterator[tuple[str, str]]:
    """llama.cpp's name and transformers' of each tensor, layer by layer. Raises KitError for one without a name."""
    tops = {theirs: ours for ours, theirs in TOP_NAMES.items()}
    layers = {theirs: ours for ours, theirs in LAYER_NAMES.items()}
    found = []
    for own in source.tensors:
        stem, end = own.rsplit(".", 1)
        if own.endswith("rotary_emb.inv_freq") or (stem == "lm_head" and tied):
            continue  # computed anew; and a copy of the embedding
        parts = stem.split(".", 3)
        if stem in tops:
            found.append(((-1, stem), f"{tops[stem]}.{end}", own))
        elif parts[:2] == ["model", "layers"] and len(parts) == 4 and parts[3] in layers:
            found.append(((int(parts[2]), parts[3]), f"blk.{parts[2]}.{layers[parts[3]]}.{end}", own))
        else:
            raise KitError(f"the tensor {own} has no place in llama.cpp's Llama.", "make run METHOD=manual")
    for _, name, own in sorted(found):
        yield name, own


def append(writer: GGUFWriter, pieces: Iterable[numpy.ndarray]) -> None:
    """One tensor's bytes, piece by piece. (The writer's own write_tensor_data takes a whole tensor at once, and of a
    disk that is full it says how many numbers fitted, and not that it is full.)"""
    assert writer.fout  # its header is written
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    size = sum(file.write(piece.data) for piece in pieces)
    writer.write_padding(file, size)


def permute(values: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Rows of a query or key projection, from transformers' order (halves) to llama.cpp's (rotary pairs side by side).

    The inverse of plain_folder.unpermute. `values`: (heads * head_dim, hidden).
    """
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def encoded(
    source: SafetensorsFile, own: str, kind: Any, heads: int | None, pool: ThreadPoolExecutor
) -> Iterator[numpy.ndarray]:
    """A tensor as it stands in a GGUF file: a vector as float32, a matrix in llama.cpp's blocks, some rows at a time.

    A piece a thread (numpy lets go of the interpreter), and no more of them in memory than there is work for. With
    `heads` the rows are permuted first.
    """
    shape = source.tensors[own].shape
    if len(shape) == 1:
        yield as_float32(source.bits(own))
        return
    step = max(1, PIECE // shape[1])
    if heads:
        step = -(-step // (shape[0] // heads)) * (shape[0] // heads)  # whole heads
    started: deque[Future[numpy.ndarray]] = deque()
    for start in range(0, shape[0], step):
        end = min(start + step, shape[0])
        started.append(
            pool.submit(_blocks, source.rows(own, start, end), kind, heads and (end - start) * heads // shape[0])
        )
        if len(started) > machine.performance().count:
            yield started.popleft().result()
    for left in started:
        yield left.result()


def _blocks(bits: numpy.ndarray, kind: Any, heads: int | None) -> numpy.ndarray:
    import numpy
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    if heads:
        bits = permute(bits, heads)
    if kind == GGMLQuantizationType.BF16 and bits.dtype == numpy.uint16:
        return numpy.ascontiguousarray(bits)
    blocks: numpy.ndarray = quantize(as_float32(bits), kind)
    return blocks
