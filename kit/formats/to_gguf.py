"""A GGUF file out of a plain model folder, for llama.cpp: the same weights under its names, in one of its formats.

One architecture, Llama's, with the gguf package's writer and quantisers. (llama.cpp's own converter is in no well-kept
package of the index, and loads torch and transformers.)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.environment import machine
from kit.errors import Command, KitError
from kit.formats import gguf_tokenizer, llama
from kit.formats.gguf import GgufFile
from kit.formats.safetensors import SafetensorsFile, as_float32, bfloat16

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

PIECE = 1 << 20  # numbers that a thread works on at a time

Progress = Callable[[float], None]


def convert(
    folder: Path, weights: list[Path], title: str, quant: str, path: Path, on_progress: Progress = lambda share: None
) -> None:
    """Writes `path` from the folder's config.json and tokenizer and the safetensors files `weights`.

    The same input gives the same bytes. `on_progress` gets the share that is written, 0 to 1. Raises KitError for an
    architecture, a RoPE scaling or a tokenizer that the kit cannot convert.
    """
    from gguf import GGUFWriter

    config = llama.read_config(folder)
    source = SafetensorsFile(weights)
    writer = GGUFWriter(path, "llama")
    try:
        _add_metadata(writer, config, title, quant)
        _add_tokenizer(writer, folder, config["vocab_size"])
        _write_tensors(writer, source, config, quant, on_progress)
    finally:
        writer.close()


def _add_metadata(writer: GGUFWriter, config: dict[str, Any], title: str, quant: str) -> None:
    from gguf import LlamaFileType
    from gguf.constants import GGML_QUANT_VERSION

    heads, kv_heads, head_dim = llama.heads(config)
    theta, _ = llama.rope(config)
    writer.add_name(title)
    writer.add_file_type(LlamaFileType[FILE_TYPES[quant]])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
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


def sizes(folder: Path, weights: list[Path], quant: str) -> dict[str, int]:
    """The bytes of each tensor of the file that `convert` would write. Raises KitError as it does."""
    layout = _layout(SafetensorsFile(weights), llama.read_config(folder), quant)
    return {name: size for name, (_, size) in layout.items()}


def _layout(source: SafetensorsFile, config: dict[str, Any], quant: str) -> dict[str, tuple[str, int]]:
    """llama.cpp's name of each tensor -> transformers' name, and the bytes that it takes in the file."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[TYPES[quant]]]
    found = {}
    for name, own in llama.tensor_names(source.tensors, bool(config.get("tie_word_embeddings"))):
        shape = source.tensors[own].shape
        if len(shape) > 1 and shape[-1] % block:
            what = f"{own} has rows of {shape[-1]}, and {quant} takes multiples of {block}."
            raise KitError(what, Command("gguf", QUANT="bf16"))
        found[name] = own, 4 * shape[0] if len(shape) == 1 else math.prod(shape) // block * block_bytes
    return found


def _write_tensors(
    writer: GGUFWriter, source: SafetensorsFile, config: dict[str, Any], quant: str, on_progress: Progress
) -> None:
    from concurrent.futures import ThreadPoolExecutor  # here: a run that writes nothing does without

    import numpy
    from gguf.constants import GGMLQuantizationType

    heads, kv_heads, head_dim = llama.heads(config)
    theta, scaling = llama.rope(config)
    kind = GGMLQuantizationType[TYPES[quant]]
    layout = _layout(source, config, quant)
    freqs = llama.rope_freqs(theta, scaling, head_dim) if scaling else None
    if freqs is not None:
        writer.add_tensor_info("rope_freqs.weight", freqs.shape, freqs.dtype, freqs.nbytes)
    for name, (own, size) in layout.items():
        shape = source.tensors[own].shape
        raw = {} if len(shape) == 1 else {"raw_dtype": kind}
        writer.add_tensor_info(name, shape, numpy.dtype(numpy.float32), size, **raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if freqs is not None:
        append(writer, [freqs])
    total, done = sum(source.tensors[own].count for own, _ in layout.values()), 0
    with ThreadPoolExecutor(machine.performance().count) as pool:
        for name, (own, _) in layout.items():
            permuted = heads if ".attn_q." in name else kv_heads if ".attn_k." in name else None
            append(writer, encoded(source, own, kind, permuted, pool))
            done += source.tensors[own].count
            on_progress(done / total)


def append(writer: GGUFWriter, pieces: Iterable[numpy.ndarray]) -> None:
    """One tensor's bytes, piece by piece. (The writer's own write_tensor_data takes a whole tensor at once, and of a
    disk that is full it says how many numbers fitted, and not that it is full.)"""
    assert writer.fout  # its header is written
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    size = sum(file.write(piece.data) for piece in pieces)
    writer.write_padding(file, size)


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
    at_once = machine.performance().count
    for start in range(0, shape[0], step):
        end = min(start + step, shape[0])
        heads_here = heads and (end - start) * heads // shape[0]
        started.append(pool.submit(_blocks, source.rows(own, start, end), kind, heads_here))
        if len(started) > at_once:
            yield started.popleft().result()
    for left in started:
        yield left.result()


def _blocks(bits: numpy.ndarray, kind: Any, heads: int | None) -> numpy.ndarray:
    import numpy
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    if heads:
        bits = llama.permute(bits, heads)
    if kind == GGMLQuantizationType.BF16 and bits.dtype == numpy.uint16:
        return numpy.ascontiguousarray(bits)
    blocks: numpy.ndarray = quantize(as_float32(bits), kind)
    return blocks


# --- An adapter -------------------------------------------------------------------------------------------------------

LORA = {"lora_A": "lora_a", "lora_B": "lora_b"}


def adapter_names(names: Iterable[str]) -> dict[str, str]:
    """llama.cpp's name of each tensor of a LoRA adapter -> peft's. Raises KitError for one that has none."""
    found = {}
    for own in names:
        try:
            stem, side, _ = own.removeprefix("base_model.model.").rsplit(".", 2)
            ((name, _),) = llama.tensor_names([f"{stem}.weight"], tied=False)
            found[f"{name}.{LORA[side]}"] = own
        except (KeyError, ValueError) as error:
            raise KitError(f"the adapter's tensor {own} has no place in llama.cpp's Llama.") from error
    return dict(sorted(found.items()))


def convert_adapter(source: Path, config: dict[str, Any], alpha: float, title: str, path: Path) -> None:
    """Writes `path`, a LoRA adapter of peft's (`source`, safetensors) as llama.cpp takes it, and proves it.

    The rows of a query's and a key's B are in the order of the rows that they are added to. Nothing of RoPE: that is
    the base's.
    """
    import numpy
    from gguf import GGUFWriter
    from gguf.constants import GGUFType

    tensors = SafetensorsFile([source])
    names = adapter_names(tensors.tensors)
    writer = GGUFWriter(path, "llama")
    try:
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        writer.add_name(title)
        for name, own in names.items():
            shape, size = tensors.tensors[own].shape, tensors.tensors[own].count * 4
            writer.add_tensor_info(name, shape, numpy.dtype(numpy.float32), size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, own in names.items():
            values, heads = as_float32(tensors.bits(own)), _adapter_heads(name, config)
            append(writer, [llama.permute(values, heads) if heads else values])
    finally:
        writer.close()
    _prove_adapter(tensors, config, alpha, path)


def _adapter_heads(name: str, config: dict[str, Any]) -> int | None:
    heads, kv_heads, _ = llama.heads(config)
    if not name.endswith("lora_b"):
        return None
    return heads if ".attn_q." in name else kv_heads if ".attn_k." in name else None


def _prove_adapter(source: SafetensorsFile, config: dict[str, Any], alpha: float, path: Path) -> None:
    import numpy

    written = GgufFile(path)
    try:
        names = adapter_names(source.tensors)
        if set(written.tensors) != set(names) or written.metadata.get("adapter.lora.alpha") != alpha:
            raise _unproved(path, "it has other tensors than the adapter, or another alpha")
        for name, own in names.items():
            values, heads = numpy.array(written.decode(name)), _adapter_heads(name, config)  # a copy: it is closed here
            if not numpy.array_equal(llama.unpermute(values, heads) if heads else values, source.bits(own)):
                raise _unproved(path, f"{name} is not {own}")
    finally:
        written.close()


# --- The proof: what stands in the file, held against its source ------------------------------------------------------

# How far a number may be from its source, in steps of its block: half a step, or a whole one where the largest is cut
# off (q4_0 has -8 to 7); and the rounding of the step itself, to float16, as often as it is taken.
ALLOWED = {"q8_0": 0.5 + 127 / 2048, "q4_0": 1.0 + 8 / 2048}
# Numbers a thread looks at in one go: fewer leave less to numpy, and more leave the processor's cache.
AT_ONCE = 1 << 19
SMALLEST = 2.0**-24  # a step that float16 cannot hold is none


def prove(
    folder: Path, weights: list[Path], quant: str, path: Path, on_progress: Progress = lambda share: None
) -> None:
    """Reads the file back and holds every tensor against its source, within its format's rounding, and what it says of
    the model against config.json. Raises KitError that says what is not right.

    Not by the way that it was written: by llama.cpp's name to transformers', with the order of rows undone, by numpy
    alone, some rows at a time.
    """
    from concurrent.futures import ThreadPoolExecutor

    config = llama.read_config(folder)
    source, written = SafetensorsFile(weights), GgufFile(path)
    try:
        _prove_metadata(written, config)
        names = dict(llama.tensor_names(source.tensors, bool(config.get("tie_word_embeddings"))))
        extra = {"rope_freqs.weight"} if llama.rope(config)[1] else set()
        if other := set(written.tensors) ^ (set(names) | extra):
            raise _unproved(path, f"it has other tensors: {', '.join(sorted(other)[:3])}")
        total, done = sum(source.tensors[own].count for own in names.values()), 0
        with ThreadPoolExecutor(machine.performance().count) as pool:
            for name, own in names.items():
                if written.tensors[name].shape != source.tensors[own].shape:
                    raise _unproved(path, f"{name} has another shape than {own}")
                pieces = [
                    pool.submit(_is_right, written, name, source, own, rows, heads, quant)
                    for rows, heads in _pieces(source.tensors[own].shape, name, config)
                ]
                if not all(piece.result() for piece in pieces):
                    raise _unproved(path, f"{name} is not {own}, within the rounding of {quant}")
                done += source.tensors[own].count
                on_progress(done / total)
    finally:
        written.close()


def _unproved(path: Path, why: str) -> KitError:
    return KitError(f"{path.name.strip('.')} was written and is not right: {why}.", "please report it, with the model")


def _prove_metadata(written: GgufFile, config: dict[str, Any]) -> None:
    heads, kv_heads, head_dim = llama.heads(config)
    theta, scaling = llama.rope(config)
    expected = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.dimension_count": head_dim,
        "rope.freq_base": theta,
        "vocab_size": config["vocab_size"],
    }
    for key, value in expected.items():
        got = written.metadata.get(f"llama.{key}")
        if got is None or abs(got - value) > 1e-6 * abs(value):
            raise _unproved(written.path, f"it says llama.{key} = {got}, and config.json {value}")
    if len(written.metadata.get("tokenizer.ggml.tokens", ())) != config["vocab_size"]:
        raise _unproved(written.path, "it has another number of tokens than config.json")
    if scaling:
        import numpy

        factors = llama.rope_freqs(theta, scaling, head_dim)
        if "rope_freqs.weight" not in written.tensors or not numpy.array_equal(
            written.decode("rope_freqs.weight"), factors
        ):
            raise _unproved(written.path, "its RoPE factors are not config.json's")


def _pieces(shape: tuple[int, ...], name: str, config: dict[str, Any]) -> Iterator[tuple[tuple[int, int], int | None]]:
    """Rows from and up to which a thread looks at, and of a query or key projection how many heads they are."""
    _, _, head_dim = llama.heads(config)
    permuted = ".attn_q.weight" in name or ".attn_k.weight" in name
    step = max(1, AT_ONCE // (shape[1] if len(shape) > 1 else 1))
    if permuted:
        step = -(-step // head_dim) * head_dim
    for start in range(0, shape[0], step):
        end = min(start + step, shape[0])
        yield (start, end), ((end - start) // head_dim if permuted else None)


def _is_right(
    written: GgufFile,
    name: str,
    source: SafetensorsFile,
    own: str,
    rows: tuple[int, int],
    heads: int | None,
    quant: str,
) -> bool:
    import numpy

    bits = source.rows(own, *rows)
    blocks = written.rows(name, *rows)
    if bits.ndim == 1:
        return numpy.array_equal(blocks.view(numpy.float32).ravel(), as_float32(bits))
    if quant == "bf16":
        numbers = blocks.view(numpy.uint16)
        numbers = llama.unpermute(numbers, heads) if heads else numbers
        return numpy.array_equal(numbers, bits if bits.dtype == numpy.uint16 else bfloat16(as_float32(bits)))
    # The source's rows in the file's order: before they are unpacked.
    return _is_near(blocks, llama.permute(bits, heads) if heads else bits, quant)


def _is_near(blocks: numpy.ndarray, bits: numpy.ndarray, quant: str) -> bool:
    """Whether rows of blocks are rows of the source, within the rounding of their format."""
    import numpy

    width = 32 if quant == "q8_0" else 16
    block = blocks.reshape(-1, 2 + width)
    steps: Any = block[:, :2].copy().view(numpy.float16).astype(numpy.float32)
    sizes, source = numpy.abs(steps), as_float32(bits).reshape(-1, 32)
    packed, middle = block[:, 2:].copy(), 0
    numbers: Any = packed.view(numpy.int8)
    if quant == "q4_0":
        eights, middle = packed.view(numpy.uint64), 8
        halves = numpy.empty((len(block), 4), numpy.uint64)
        for place in range(2):
            halves[:, place] = eights[:, place] & 0x0F0F0F0F0F0F0F0F
            halves[:, 2 + place] = (eights[:, place] >> 4) & 0x0F0F0F0F0F0F0F0F
        numbers = halves.view(numpy.uint8)
    # All at once, in steps, which is stricter: without what the smallest steps are allowed besides.
    if sizes.min() > SMALLEST and sizes.max() < numpy.inf:
        off = source * (1 / steps)
        off -= numbers
        if off.max() + middle <= ALLOWED[quant] and off.min() + middle >= -ALLOWED[quant]:
            return True
    largest = numpy.abs((numbers.astype(numpy.float32) - middle) * steps - source).max(axis=1)
    return bool((largest <= sizes[:, 0] * ALLOWED[quant] + 130 * SMALLEST).all())
