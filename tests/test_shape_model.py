"""MODEL=llama-3.2-1b-shape: random weights in the exact shape and size of Llama 3.2 1B, the same bytes everywhere."""

from __future__ import annotations

import json

import pytest

from kit import paths
from kit.engines.request import Request
from kit.errors import KitError, WrongUsage
from kit.files import sha256
from kit.formats import llama, safetensors
from kit.hub import download
from kit.models import folder as model_folder
from kit.models import random_weights, registry
from kit.models.registry import Model, ModelFile
from kit.verify import stages

SMALL = random_weights.CONFIG | {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "vocab_size": 49160,
}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 1}


def test_it_has_the_bytes_and_the_tensors_of_llama_3_2_1b():
    shapes = llama.shapes(random_weights.CONFIG)
    assert len(shapes) == 146
    size = len(safetensors.header(shapes)) + 2 * sum(
        shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes.values()
    )
    # What meta-llama/Llama-3.2-1B's model.safetensors has.
    (real,) = (file for file in registry.find("llama-3.2-1b").files if file.path == "model.safetensors")
    (own,) = (file for file in registry.find(random_weights.NAME).files if file.path == "model.safetensors")
    assert size == real.size == own.size == 2_471_645_608


def test_its_tensors_are_those_that_transformers_makes_of_the_config(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    random_weights.write(tmp_path, paths.MODELS / "starter", SMALL)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    own = {name: tuple(values.shape) for name, values in loaded.state_dict().items() if name != "lm_head.weight"}
    assert own == llama.shapes(SMALL)
    weights = loaded.model.embed_tokens.weight.detach().float()
    assert float(weights.std()) == pytest.approx(0.02, rel=0.01)
    assert float(loaded.model.norm.weight.detach().float().min()) == 1.0


@pytest.mark.container
def test_the_same_bytes_each_time(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        random_weights.write(tmp_path / name, paths.MODELS / "starter", SMALL)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other


def test_its_tokenizer_is_the_starters_with_tokens_that_no_text_gives(tmp_path):
    from tokenizers import Tokenizer

    random_weights.write(tmp_path, paths.MODELS / "starter", SMALL)
    padded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    own = Tokenizer.from_file(str(paths.MODELS / "starter" / "tokenizer.json"))
    assert padded.get_vocab_size() == 49160
    text = "Hello <unused49152>, 123 नमस्ते"
    assert padded.encode(text).ids == own.encode(text).ids
    assert padded.decode([49159]) == "<unused49159>"


@pytest.fixture
def small(models, monkeypatch, tmp_path):
    """The model in small, pinned: what takes 15 s and 2.5 GB is made by test-slow."""
    starter = paths.ROOT / "models" / "starter"
    (models / "starter").symlink_to(starter)
    monkeypatch.setattr(random_weights, "CONFIG", SMALL)
    (tmp_path / "made").mkdir()
    random_weights.write(tmp_path / "made", starter, SMALL)
    files = tuple(
        ModelFile(path.name, path.stat().st_size, sha256(path)) for path in sorted((tmp_path / "made").iterdir())
    )
    return Model(random_weights.NAME, "small", "random", "Apache-2.0", None, "seed-0", False, 131072, files, None)


def test_a_download_makes_it_here_once(small):
    assert download.download(small) is True
    assert model_folder.is_whole(small)
    assert download.download(small) is False
    assert sorted(path.name for path in paths.MODELS.iterdir() if "partial" in path.name) == []


def test_other_bytes_than_pinned_are_refused_and_leave_nothing(small, monkeypatch):
    monkeypatch.setattr(random_weights, "SEED", 1)
    with pytest.raises(KitError, match=r"has other bytes than env/models.toml pins: model.safetensors"):
        download.download(small)
    assert not small.folder.exists()


def test_before_it_is_made_a_run_says_what_makes_it(script, kit_copy):
    done = script("run", "--model", random_weights.NAME, cwd=kit_copy)
    assert done.status == 1
    assert "make download MODEL=llama-3.2-1b-shape" in done.err
    assert "no network, no account" in done.err


def test_every_run_says_that_it_is_random(script, kit_copy):
    assert (
        "random weights in the shape of Llama 3.2 1B" in script("run", "--model", random_weights.NAME, cwd=kit_copy).err
    )


@pytest.mark.parametrize("recording", [False, True])
def test_verify_refuses_it(recording):
    model = registry.find(random_weights.NAME)
    with pytest.raises(WrongUsage, match="there is nothing to verify"):
        stages.record(model) if recording else stages.verify(Request(model))


@pytest.mark.slow
def test_the_real_size_comes_out_as_pinned(script, tmp_path):
    """All 2.5 GB, hashed."""
    model = registry.find(random_weights.NAME)
    random_weights.ensure(model)
    model_folder.verify(model)
    assert json.loads((model.folder / "config.json").read_text())["vocab_size"] == 128256
