"""The fast reader reads what the gguf package writes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy
import pytest

from kit.errors import KitError
from kit.formats.gguf import GgufFile


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(7)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "Ġb", "नमस्ते", ""])
    writer.add_token_types([1, 3, 1, 1])
    writer.add_add_bos_token(False)
    values = numpy.arange(64, dtype=numpy.float32).reshape(2, 32)
    writer.add_tensor("plain.weight", values)
    blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("packed.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_of_every_kind(written):
    metadata = GgufFile(written).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 7
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert metadata["tokenizer.ggml.tokens"] == ["a", "Ġb", "नमस्ते", ""]
    assert metadata["tokenizer.ggml.token_type"] == [1, 3, 1, 1]
    assert metadata["tokenizer.ggml.add_bos_token"] is False


def test_tensors_decode_as_the_gguf_package_decodes_them(written):
    file = GgufFile(written)
    reference = {tensor.name: tensor for tensor in gguf.GGUFReader(written).tensors}
    assert list(file.tensors) == list(reference)
    for name, tensor in reference.items():
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        numpy.testing.assert_array_equal(file.decode(name), expected)
    numpy.testing.assert_array_equal(file.decode("plain.weight"), numpy.arange(64).reshape(2, 32))


def test_a_file_that_is_cut_short_is_named_at_any_length(written):
    content = written.read_bytes()
    for length in (5, 30, 100, 200, len(content) - 40):
        written.write_bytes(content[:length])
        with pytest.raises(KitError) as caught:
            GgufFile(written).decode("packed.weight")
        assert str(written) in caught.value.message


def test_another_file_is_not_gguf(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(KitError, match="not a GGUF file"):
        GgufFile(tmp_path / "x.gguf")
