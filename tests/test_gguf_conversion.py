"""A model folder -> GGUF: what llama.cpp makes of it is what transformers makes of the folder."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import statistics
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy
import pytest

from kit import paths
from kit.engines.llama_server import LlamaServer
from kit.engines.llamacpp_engine import LlamacppEngine
from kit.engines.torch_engine import measure
from kit.errors import KitError
from kit.formats import gguf_tokenizer, llama, to_gguf
from kit.formats.gguf import GgufFile
from kit.formats.safetensors import SafetensorsFile, as_float32
from kit.models import random_weights
from kit.models.gguf_files import Quant
from kit.verify import golden, tolerances
from tests import tiny_llamas

# Code, emoji, Devanagari, Thai, digits, and white space of every kind.
CORPUS = [
    "The quick brown fox, isn't it? IT'S 12345 and 3.14159; we've I'll they'D",
    "def f(x):\n\treturn {'a': [x**2 for _ in range(10)]}  # done\n\n\n    pass\r\n",
    "😀😃 family 👨‍👩‍👧‍👦 flag 🇮🇳 skin 👍🏽 and ❤️",
    "नमस्ते दुनिया, यह एक परीक्षण है। १२३४",
    "สวัสดีชาวโลก นี่คือการทดสอบ ๑๒๓",
    "  two  blanks\t\ttabs \n \n  newlines\n\n\n\nend   ",
    "a\u00a0no-break\u2003em\u200bzero\u3000wide \u2028line",
    "naïve café ÅÄÖ Straße Ελληνικά русский 中文字符 日本語テスト 한국어",
    "https://example.com/a?b=c&d=%20#x <html> </s> <|im_start|",
    "x" * 40 + "1" * 25 + "!" * 12,
]


def convert(folder: Path, path: Path, quant: str = "bf16") -> Path:
    to_gguf.convert(folder, [folder / "model.safetensors"], "a title", quant, path)
    return path


@pytest.fixture(scope="module")
def converted(starter, tmp_path_factory):
    """The starter's file in a format, written once: converted("q8_0"). To be read alone."""
    folder = tmp_path_factory.mktemp("converted")

    @functools.cache
    def path(quant: str = "bf16") -> Path:
        return convert(starter.folder, folder / f"{quant}.gguf", quant)

    return path


def differences(model, path: Path, ids: list[int], first: int, logprobs: list[float]) -> list[float]:
    with LlamacppEngine(model, "cpu", "bf16") as engine:
        engine.quant = Quant("bf16", path, "")
        engine.load(len(ids))
        return [abs(a.logprob - b) for a, b in zip(engine.logprobs(ids, first), logprobs, strict=True)]


# --- Log-probabilities ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_starters_bf16_file_says_what_transformers_float32_says(starter, converted):
    reference = golden.read(starter)
    entry = next(entry for entry in reference.entries if entry.name == "long")
    # The last ones of 2,096 tokens: where a wrong position would show most.
    first = len(entry.ids) - 32
    found = differences(starter, converted(), list(entry.ids), first, list(entry.logprobs[first - entry.first :]))
    assert statistics.fmean(found) < tolerances.TABLE["cpu", "bf16"].mean
    assert max(found) < tolerances.TABLE["cpu", "bf16"].largest


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["q8_0", "q4_0"])
def test_llamacpp_says_of_a_rounded_file_what_transformers_says_of_the_same_rounded_weights(quant, starter, converted):
    """4 bits move the starter's log-probabilities by 0.9, which would hide a fault of the file; this does not."""
    import torch
    from transformers import AutoModelForCausalLM

    path = converted(quant)
    known, model = GgufFile(path), AutoModelForCausalLM.from_pretrained(starter.folder, dtype=torch.float32)
    weights = {}
    for name in known.tensors:
        values = known.decode(name)
        if ".attn_q." in name or ".attn_k." in name:
            values = llama.unpermute(values, 9 if ".attn_q." in name else 3)
        weights[llama.weight_name(name)] = torch.from_numpy(values.copy())
    model.load_state_dict(weights, strict=False)
    entry = next(entry for entry in golden.read(starter).entries if entry.name == "english")
    first = len(entry.ids) - 32
    found = differences(
        starter, path, list(entry.ids), first, [each.logprob for each in measure(model, entry.ids, first)]
    )
    # Measured: 0.027 and 0.19 in q8_0, 0.041 and 0.23 in q4_0; at 2,000 tokens 0.063 and 0.29, 0.073 and 0.45.
    assert statistics.fmean(found) < 0.1
    assert max(found) < 0.9


@pytest.fixture(scope="module")
def small_once(tmp_path_factory):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests import llama_small

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "MODELS", tmp_path_factory.mktemp("models"))
        model = llama_small.make(paths.MODELS / "small", paths.ROOT / "models" / "starter")
        ids = AutoTokenizer.from_pretrained(model.folder)(golden.prompts()["long"])["input_ids"][:1024]
        first = len(ids) - 24
        loaded = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
        return paths.MODELS, (model, ids, first, [each.logprob for each in measure(loaded, ids, first)])


@pytest.fixture
def small(small_once, monkeypatch):
    """A small model with Llama 3.2's settings, 1,024 tokens of text, and what transformers makes of the last ones."""
    models, found = small_once
    monkeypatch.setattr(paths, "MODELS", models)
    return found


@pytest.mark.slow
def test_a_model_with_llama_3_2s_settings_says_what_transformers_float32_says(small, tmp_path):
    model, ids, first, logprobs = small
    found = differences(model, convert(model.folder, tmp_path / "small.gguf"), ids, first, logprobs)
    assert statistics.fmean(found) < 0.04
    assert max(found) < 0.2


@pytest.mark.parametrize("left_out", ["RoPE scaling", "permutation"])
def test_the_same_proof_sees_a_conversion_without(left_out, small, tmp_path, monkeypatch):
    model, ids, first, logprobs = small
    if left_out == "permutation":
        monkeypatch.setattr(llama, "permute", lambda values, heads: values)
    else:
        rope = llama.rope
        monkeypatch.setattr(llama, "rope", lambda config: (rope(config)[0], {}))
    found = differences(model, convert(model.folder, tmp_path / "wrong.gguf"), ids, first, logprobs)
    assert statistics.fmean(found) > 0.4


def test_the_rope_factors_are_those_of_transformers():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(**copy.deepcopy(random_weights.CONFIG))  # it writes into what it is given
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    theta, scaling = llama.rope(random_weights.CONFIG)
    plain = 1 / theta ** (numpy.arange(0, 64, 2) / 64)
    assert llama.rope_freqs(theta, scaling, 64) == pytest.approx(plain / scaled.numpy(), rel=1e-5)


def test_both_spellings_of_the_rope_settings_are_the_same():
    scaling = dict(random_weights.CONFIG["rope_scaling"])
    now = {"rope_parameters": {**scaling, "rope_theta": 500000.0}}
    theta, settings = llama.rope(now)
    assert (theta, settings) == llama.rope(random_weights.CONFIG)
    assert theta == 500000.0
    assert settings.items() >= {name: scaling[name] for name in scaling if name != "rope_type"}.items()
    assert llama.rope({"rope_theta": 100000.0, "rope_scaling": None}) == (100000.0, {})


# --- Tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.container
def test_bf16_keeps_every_bit_and_permutes_the_heads_alone(starter, converted):
    known = GgufFile(converted())
    source = SafetensorsFile([starter.folder / "model.safetensors"])
    assert len(known.tensors) == len(source.tensors) == 272
    for name in known.tensors:
        values = known.decode(name)
        if ".attn_q." in name or ".attn_k." in name:
            values = llama.unpermute(values, 9 if ".attn_q." in name else 3)
        assert numpy.array_equal(values, as_float32(source.bits(llama.weight_name(name)))), name


@pytest.mark.parametrize(("quant", "kind"), [pytest.param("q8_0", "Q8_0", marks=pytest.mark.slow), ("q4_0", "Q4_0")])
def test_the_blocks_are_the_gguf_packages_own(quant, kind, starter, converted):
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    known = GgufFile(converted(quant))
    source = SafetensorsFile([starter.folder / "model.safetensors"])
    for name in ("token_embd.weight", "blk.7.ffn_down.weight"):
        values = as_float32(source.bits(llama.weight_name(name)))[:1000]
        wanted = dequantize(quantize(values, GGMLQuantizationType[kind]), GGMLQuantizationType[kind])
        assert numpy.array_equal(known.decode(name)[:1000], wanted)
    assert known.metadata["general.file_type"] == {"q8_0": 7, "q4_0": 2}[quant]


def test_weights_in_several_files_give_the_same_bytes(small, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = small[0].folder
    weights = load_file(folder / "model.safetensors")
    parts = [tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model-00002-of-00002.safetensors"]
    for place, part in enumerate(parts):
        save_file({name: values for name, values in weights.items() if len(name) % 2 == place}, part)
    to_gguf.convert(folder, parts, "a title", "bf16", tmp_path / "parts.gguf")
    assert (tmp_path / "parts.gguf").read_bytes() == convert(folder, tmp_path / "one.gguf").read_bytes()


@pytest.mark.container
def test_memory_holds_a_piece_and_not_the_model(starter, tmp_path):
    """A run that writes its file first reports its own peak, and not the conversion's."""
    program = (
        "import sys; from pathlib import Path; from kit.engines import memory; from kit.formats import to_gguf; "
        "folder = Path(sys.argv[1]); "
        "to_gguf.convert(folder, [folder / 'model.safetensors'], 'a title', 'q8_0', Path(sys.argv[2])); "
        "print(memory.peak_rss_bytes(), {'torch', 'transformers'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program, str(starter.folder), str(tmp_path / "starter.gguf")]
    peak, imported = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout.split(
        maxsplit=1
    )
    assert int(peak) < 200_000_000  # 119 MB where this was written; the weights alone are 269
    assert imported == "set()\n"


def test_the_same_folder_gives_the_same_bytes(starter, converted, tmp_path):
    one = converted("q4_0").read_bytes()
    assert convert(starter.folder, tmp_path / "other.gguf", "q4_0").read_bytes() == one


def test_an_untied_head_is_its_own_tensor(small, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "untied"
    shutil.copytree(small[0].folder, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {**weights, "lm_head.weight": torch.zeros(49152, 512, dtype=torch.bfloat16)}, folder / "model.safetensors"
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert "output.weight" in GgufFile(convert(folder, tmp_path / "untied.gguf")).tensors
    assert "output.weight" not in GgufFile(convert(small[0].folder, tmp_path / "tied.gguf")).tensors


# --- The tokenizer ----------------------------------------------------------------------------------------------------


def ids_of_llamacpp(path: Path) -> list[list[int]]:
    with closing(LlamaServer(path, "cpu", 64)) as server:
        return [server.post("/tokenize", {"content": text, "add_special": True})["tokens"] for text in CORPUS]


def ids_of_the_folder(folder: Path) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in CORPUS]


def test_llamacpp_cuts_text_into_the_starters_tokens(starter, converted):
    assert ids_of_llamacpp(converted()) == ids_of_the_folder(starter.folder)


@pytest.mark.slow
def test_llamacpp_cuts_text_into_llama_3s_tokens(small, tmp_path):
    """With the real tokenizer of Llama 3, from Meta's own package; its licence keeps it out of here."""
    from tests import llama3_tokenizer

    folder = tmp_path / "llama3"
    shutil.copytree(small[0].folder, folder)
    llama3_tokenizer.put_into(folder, tmp_path)
    path = convert(folder, tmp_path / "llama3.gguf", "q8_0")
    assert GgufFile(path).metadata["tokenizer.ggml.pre"] == "llama-bpe"
    found = ids_of_the_folder(folder)
    assert ids_of_llamacpp(path) == found
    assert all(ids[0] == 128000 for ids in found)
    # As Meta's own tokenizer has it: "Hello world" in its tests and papers.
    assert llama3_tokenizer.encode(folder, "Hello world!") == [128000, 9906, 1917, 0]


def test_special_tokens_and_the_chat_template_come_along(starter, converted):
    metadata = GgufFile(converted()).metadata
    shipped = GgufFile(starter.folder / "starter-q4_1.gguf").metadata
    for name in ("tokens", "token_type", "merges", "pre", "bos_token_id", "eos_token_id", "padding_token_id"):
        assert metadata[f"tokenizer.ggml.{name}"] == shipped[f"tokenizer.ggml.{name}"], name
    assert metadata["tokenizer.chat_template"] == shipped["tokenizer.chat_template"]
    assert metadata["tokenizer.ggml.add_bos_token"] is False


# --- What it refuses --------------------------------------------------------------------------------------------------


def test_another_pre_tokenizer_is_refused_by_name(starter, tmp_path):
    said = json.loads((starter.folder / "tokenizer.json").read_text())
    said["pre_tokenizer"]["pretokenizers"][0]["type"] = "Metaspace"
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(KitError, match=r"no name for in llama\.cpp \(Metaspace, ByteLevel\)"):
        gguf_tokenizer.read(tmp_path, 49152)


def test_the_same_cut_with_another_use_of_merges_is_refused(starter, tmp_path):
    """llama.cpp decides by the pre-tokenizer's name whether a piece that is a token is taken whole."""
    said = json.loads((starter.folder / "tokenizer.json").read_text())
    said["model"]["ignore_merges"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(KitError, match=r"no name for in llama\.cpp \(Digits, ByteLevel\)"):
        gguf_tokenizer.read(tmp_path, 49152)


def test_a_chat_template_in_the_tokenizers_settings_comes_along_too(starter, tmp_path):
    shutil.copy(starter.folder / "tokenizer.json", tmp_path)
    config = json.loads((starter.folder / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ messages }}"}))
    assert gguf_tokenizer.read(tmp_path, 49152).chat_template == "{{ messages }}"


# --- The proof --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path) -> Path:
    scaling = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    tiny_llamas.bake(tiny_llamas.Recipe(config={"rope_scaling": scaling}), tmp_path / "tiny", 1)
    return tmp_path / "tiny"


def flip(path: Path, tensor: str, change) -> None:
    """Changes the bytes of a tensor of a written file."""
    known = GgufFile(path)
    entry = known.tensors[tensor]
    size = known.sizes()[tensor]
    known.close()
    content = bytearray(path.read_bytes())
    part = content[entry.offset : entry.offset + size]
    content[entry.offset : entry.offset + size] = change(part)
    path.write_bytes(content)


DAMAGES = {
    "zeroed": lambda part: bytes(len(part)),
    "a bit of a number": lambda part: part[:101] + bytes([part[101] ^ 0x40]) + part[102:],
    "rows swapped": lambda part: part[len(part) // 2 :] + part[: len(part) // 2],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("quant", ["bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("tensor", ["blk.1.attn_q.weight", "blk.0.ffn_down.weight", "output_norm.weight"])
def test_a_tensor_that_is_not_its_source_is_seen(tiny, tmp_path, quant, damage, tensor):
    path = tmp_path / "written.gguf"
    to_gguf.convert(tiny, [tiny / "model.safetensors"], "tiny", quant, path)
    to_gguf.prove(tiny, [tiny / "model.safetensors"], quant, path)
    before = path.read_bytes()
    flip(path, tensor, DAMAGES[damage])
    if path.read_bytes() == before:  # a vector of ones has no order
        return
    with pytest.raises(KitError, match=rf"{tensor} is not model\..*, within the rounding of {quant}"):
        to_gguf.prove(tiny, [tiny / "model.safetensors"], quant, path)


@pytest.mark.parametrize("quant", ["q8_0", "q4_0"])
def test_rows_of_zeros_and_of_the_smallest_numbers_are_proved_too(tiny, tmp_path, quant):
    """Their blocks have a step of 0, or one that float16 hardly holds."""

    def shrink(weights) -> None:
        weights["model.layers.0.mlp.down_proj.weight"][0] = 0
        weights["model.layers.0.mlp.down_proj.weight"][1] *= 2.0**-20

    tiny_llamas.tensors(shrink)(tiny)
    path = tmp_path / "written.gguf"
    to_gguf.convert(tiny, [tiny / "model.safetensors"], "tiny", quant, path)
    to_gguf.prove(tiny, [tiny / "model.safetensors"], quant, path)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ((llama, "permute", lambda values, heads: values), r"attn_.* is not model"),
        (
            (llama, "rope_freqs", lambda theta, scaling, head_dim: numpy.ones(head_dim // 2, "f4")),
            "RoPE factors are not config.json's",
        ),
    ],
)
def test_a_file_that_was_written_wrong_does_not_get_its_name(tiny, tmp_path, monkeypatch, where, says):
    path = tmp_path / "written.gguf"
    with monkeypatch.context() as wrong:
        wrong.setattr(*where)
        to_gguf.convert(tiny, [tiny / "model.safetensors"], "tiny", "bf16", path)
    with pytest.raises(KitError, match=says):
        to_gguf.prove(tiny, [tiny / "model.safetensors"], "bf16", path)


def test_what_the_file_says_of_the_model_is_held_against_its_config(tiny, tmp_path):
    path = tmp_path / "written.gguf"
    to_gguf.convert(tiny, [tiny / "model.safetensors"], "tiny", "bf16", path)
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with pytest.raises(KitError, match=r"it says llama\.attention\.layer_norm_rms_epsilon"):
        to_gguf.prove(tiny, [tiny / "model.safetensors"], "bf16", path)
