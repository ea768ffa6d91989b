"""The starter's conversion: transformers' own weights, the tokenizer that the file names, the same bytes every time."""

from __future__ import annotations

import os

import numpy
import pytest
import torch

from kit.files import sha256
from kit.formats import from_gguf, llama, safetensors
from kit.formats.gguf import GgufFile

CORPUS = [
    "Hello, who or what are you ?",
    "def f(x):\n\treturn x  **  2  # 3.14159\n",
    "In 2024, 1000000 people paid $1,234.50 for x86_64",
    "नमस्ते दुनिया १२३ สวัสดีชาวโลก 你好，世界 👋🏽 مرحبا ٣",
    "  leading,   inner \u00a0 and trailing   \n\n\n",
    "<|im_start|>user\nhi<|im_end|>",
]


@pytest.fixture(scope="module")
def gguf(starter):
    return GgufFile(starter.folder / "starter-q4_1.gguf")


def test_bfloat16_rounds_as_torch_does():
    random = numpy.random.default_rng(0)
    values = random.standard_normal(100_000).astype(numpy.float32)
    ties = numpy.arange(0x3F800000, 0x3F900000, 0x4000, dtype=numpy.uint32).view(numpy.float32)
    values = numpy.concatenate([values, ties, [0.0, -0.0, 1e-40, 3e38]]).astype(numpy.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(numpy.uint16)
    numpy.testing.assert_array_equal(safetensors.bfloat16(values), expected)


def test_unpermute_undoes_llama_cpps_permutation():
    heads, half, hidden = 3, 4, 5
    original = numpy.arange(heads * 2 * half * hidden).reshape(heads * 2 * half, hidden)
    # llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute
    permuted = original.reshape(heads, 2, half, hidden).swapaxes(1, 2).reshape(original.shape)
    numpy.testing.assert_array_equal(llama.unpermute(permuted, heads), original)


def test_each_digit_is_a_token_and_every_text_comes_back(starter):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(starter.folder / "tokenizer.json"))
    assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]
    for text in CORPUS:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("<|im_end|>").ids == [2]


@pytest.mark.container
def test_the_same_bytes_every_time(gguf, starter, tmp_path):
    shares = []
    from_gguf.write(gguf, tmp_path, shares.append)
    for file in starter.files:
        if (tmp_path / file.path).exists():
            assert sha256(tmp_path / file.path) == file.sha256, file.path
    assert (tmp_path / "model.safetensors").exists()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.slow
def test_weights_and_tokens_are_those_of_transformers_own_conversion(starter, tmp_path):
    os.environ["HF_HUB_OFFLINE"] = "1"
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Alone in a folder: beside a tokenizer.json it would read that.
    file = "starter-q4_1.gguf"
    (tmp_path / file).symlink_to(starter.folder / file)
    reference = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    ).state_dict()
    ours = load_file(starter.folder / "model.safetensors")
    assert set(reference) - set(ours) == {"lm_head.weight"}  # tied to the embeddings
    assert all(torch.equal(ours[name], reference[name]) for name in ours)

    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file)
    own = AutoTokenizer.from_pretrained(starter.folder)
    assert own.special_tokens_map == theirs.special_tokens_map
    # Digits apart: transformers' conversion leaves that pre-tokenizer out.
    texts = ["".join(letter for letter in text if not letter.isdigit()) for text in CORPUS]
    assert [own.encode(text) for text in texts] == [theirs.encode(text) for text in texts]
