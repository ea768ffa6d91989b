"""A model is examined before anything runs it: what is not right or not known is refused, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kit.engines.methods import ENGINES
from kit.errors import KitError
from kit.files import sha256
from kit.formats import llama, llama_config
from kit.formats.llama_config import ALL, LLAMACPP, TORCH
from kit.models import examine, gguf_files, random_weights, registry
from kit.models.examine import INDEX, SINGLE
from kit.models.registry import Model, ModelFile
from scripts.hints import words
from tests.hub import tiny_model


@pytest.fixture
def folder(models) -> Path:
    """A tiny model that every method runs: its tokenizer cuts as llama.cpp has a name for."""
    folder = tiny_model(models / "tiny")
    byte_level = json.loads((folder / "tokenizer.json").read_text())["pre_tokenizer"]
    digits = {"type": "Digits", "individual_digits": True}
    change(folder / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": [digits, byte_level]})
    return folder


def pinned(folder: Path, without: tuple[str, ...] = ()) -> Model:
    files = [path for path in sorted(folder.iterdir()) if path.name not in without and not path.name.startswith(".")]
    pins = tuple(ModelFile(path.name, path.stat().st_size, sha256(path)) for path in files)
    return Model(folder.name, "Tiny", "base", "MIT", "some/tiny", "0" * 40, False, 256, pins, None)


def change(path: Path, **values: Any) -> None:
    """Writes values into a JSON file; None takes a key out."""
    content = json.loads(path.read_text()) if path.exists() else {}
    kept = {key: value for key, value in {**content, **values}.items() if key not in values or value is not None}
    path.write_text(json.dumps(kept))


def reshape(folder: Path, altered: dict[str, torch.Tensor | None]) -> None:
    """Writes other tensors; None takes one out."""
    path = folder / SINGLE
    tensors = tensors_of(folder)
    save_file({name: value.clone() for name, value in {**tensors, **altered}.items() if value is not None}, path)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / SINGLE)


def against(folder: Path, framework: str = TORCH) -> str:
    return "; ".join(examine.examination(pinned(folder)).against(framework))


def test_a_right_model_has_nothing_against_it(folder):
    result = examine.examination(pinned(folder))
    assert (result.weights, result.dtype, result.objections) == ((SINGLE,), "bfloat16", ())
    assert result.rows == json.loads((folder / "config.json").read_text())["vocab_size"]


# --- config.json ------------------------------------------------------------------------------------------------------

REFUSED = [
    ({"model_type": "qwen2"}, "the architecture 'qwen2'", ALL),
    ({"hidden_act": "relu"}, 'hidden_act = "relu"', (LLAMACPP,)),
    ({"hidden_act": "mish_of_mine"}, "hidden_act", ALL),
    ({"attention_bias": True}, "attention_bias = true", (LLAMACPP,)),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config", ALL),
    ({"sliding_window": 8}, "sliding_window = 8", ALL),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5", ALL),
    ({"layer_types": ["sliding_attention"] * 2}, "layer_types", ALL),
    ({"num_attention_heads": 0}, "num_attention_heads = 0", ALL),
    ({"num_key_value_heads": 3}, "cannot share num_key_value_heads = 3", ALL),
    ({"rms_norm_eps": "small"}, 'rms_norm_eps = "small"', ALL),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "RoPE of the kind linear", (LLAMACPP,)),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "RoPE of the kind yarn", (LLAMACPP,)),
    ({"rope_scaling": {"rope_type": "spiral"}}, "RoPE of the kind 'spiral'", ALL),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor = None", ALL),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "twist": 1}}, "twist = 1", ALL),
    ({"rope_scaling": [1]}, "no table", ALL),
    ({"architectures": ["LlamaForSequenceClassification"]}, "architectures", ALL),
]


@pytest.mark.parametrize(("values", "says", "frameworks"), REFUSED)
def test_a_value_that_is_not_computed_as_it_is_meant_is_refused_by_name(values, says, frameworks, folder):
    change(folder / "config.json", **values)
    for framework in ALL:
        assert (says in against(folder, framework)) == (framework in frameworks)


def test_what_nothing_reads_is_noted_and_let_be(folder):
    change(folder / "config.json", is_llama_config=True, rope_interleaved=False, unsloth_fixed=True)
    result = examine.examination(pinned(folder))
    assert result.objections == ()
    assert result.notes == ("config.json has what nothing reads: is_llama_config, rope_interleaved, unsloth_fixed",)


def test_a_config_that_is_none_is_named(folder):
    (folder / "config.json").write_text("[1]")
    assert "config.json is not a table of settings" in against(folder)
    (folder / "config.json").write_text("{")
    assert "config.json is no JSON" in against(folder)


def test_what_is_not_in_a_config_is_what_transformers_takes():
    from transformers import LlamaConfig

    ours, theirs = llama_config.completed({"model_type": "llama"}), LlamaConfig()
    assert {key: getattr(theirs, key) for key in llama_config.DEFAULTS} == {
        key: ours[key] for key in llama_config.DEFAULTS
    }


def test_every_model_of_the_kit_passes():
    config = json.loads((registry.find("starter").folder / "config.json").read_text())
    assert llama_config.objections(config) == []
    assert llama_config.objections(random_weights.CONFIG) == []


# --- Weights ----------------------------------------------------------------------------------------------------------


def test_a_tensor_that_is_missing_is_named(folder):
    change(folder / "config.json", tie_word_embeddings=False)
    assert "asks for lm_head.weight, which the weights have not" in against(folder)


def test_a_tensor_that_is_too_many_is_named(folder):
    reshape(folder, {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)})
    assert "the weights have model.layers.0.self_attn.q_proj.bias, which config.json does not ask for" in against(
        folder
    )


def test_a_tensor_of_another_shape_is_named(folder):
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    change(folder / "config.json", vocab_size=vocabulary + 7)
    assert f"where config.json asks for [{vocabulary + 7}, 64]" in against(folder)


def test_a_tied_head_that_is_another_than_the_embedding_is_refused_and_a_copy_is_not(folder):
    embedding = tensors_of(folder)["model.embed_tokens.weight"]
    reshape(folder, {"lm_head.weight": embedding})
    assert against(folder) == ""
    other = embedding.clone()
    other[3, 5] += 1
    reshape(folder, {"lm_head.weight": other})
    assert "ties lm_head.weight to the embedding, and the weights have another" in against(folder)


def test_the_number_format_is_the_headers_word(folder):
    change(folder / "config.json", torch_dtype=None)
    assert examine.examination(pinned(folder)).dtype == "bfloat16"
    reshape(folder, {name: value.half() for name, value in tensors_of(folder).items()})
    assert examine.examination(pinned(folder)).dtype == "float16"


def test_a_number_format_that_is_none_of_the_three_is_named(folder):
    reshape(folder, {"model.norm.weight": torch.ones(64, dtype=torch.float64)})
    assert "holds model.norm.weight in F64" in against(folder)


def shard(folder: Path) -> None:
    tensors = tensors_of(folder)
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for path, own in files.items():
        save_file({name: tensors[name] for name in own}, folder / path)
    table = {name: path for path, own in files.items() for name in own}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))


def test_the_index_says_which_files_are_the_weights(folder):
    shard(folder)
    (folder / SINGLE).rename(folder / "consolidated.safetensors")
    model = pinned(folder)
    result = examine.examination(model)
    assert result.weights == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert result.objections == ()
    assert result.notes == ("weights that no method reads: consolidated.safetensors",)
    sizes = sum((folder / name).stat().st_size for name in result.weights)
    assert examine.weights_bytes(model) == sizes


def test_one_file_beside_shards_is_refused(folder):
    shard(folder)
    assert f"{SINGLE} lies beside the files that {INDEX} names" in against(folder)


@pytest.mark.parametrize("table", [{"weight_map": {"a": "gone.safetensors"}}, {"weight_map": {}}, {}])
def test_an_index_that_names_no_pinned_files_is_refused(folder, table):
    (folder / INDEX).write_text(json.dumps(table))
    assert INDEX in against(folder)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "adapter_config.json", "added_tokens.json"])
def test_a_file_that_a_method_would_read_and_nobody_pinned_is_refused_by_every_method(folder, name):
    model = pinned(folder)
    (folder / name).write_text("{}")
    for engine in ENGINES.values():
        with pytest.raises(KitError, match=f"models/tiny/{name}: nobody pinned it") as caught:
            engine(model, "cpu")
        assert "move it out of the folder" in words(caught.value.hint)


# --- Tokenizer --------------------------------------------------------------------------------------------------------


def test_a_folder_without_tokenizer_json_is_refused(folder):
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    assert "there is no tokenizer.json, which every method reads" in against(folder)


def test_what_was_left_in_the_tokenizer_is_noted(folder):
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    change(folder / "tokenizer.json", truncation=truncation)
    (note,) = examine.examination(pinned(folder)).notes
    assert "tokenizer.json has truncation left in it" in note


def test_every_source_of_end_tokens_counts(folder):
    change(folder / "config.json", eos_token_id=[3, 4])
    change(folder / "generation_config.json", eos_token_id=5)
    end = examine.examination(pinned(folder)).rows - 1  # the tokenizer's
    assert examine.examination(pinned(folder)).ends == (3, 4, 5, end)


# --- What comes of it -------------------------------------------------------------------------------------------------


def test_it_is_done_once_and_again_where_the_files_are_others(folder, monkeypatch):
    times = []
    real = examine.examine
    monkeypatch.setattr(examine, "examine", lambda source: (times.append(1), real(source))[1])

    def look() -> examine.Examination:
        examine._known.clear()  # as another process
        return examine.examination(pinned(folder))

    assert look() == look()
    assert len(times) == 1
    change(folder / "config.json", hidden_act="relu")
    assert look().against(LLAMACPP)
    assert len(times) == 2


def test_a_folder_that_cannot_be_written_is_examined_each_time(folder, monkeypatch):
    (folder / examine.RECORD).mkdir()
    assert examine.examination(pinned(folder)).objections == ()


@pytest.mark.parametrize(
    ("values", "method", "follows"),
    [
        ({"hidden_act": "relu"}, "llamacpp", "make run METHOD=manual MODEL=tiny"),
        ({"quantization_config": {"bits": 4}}, "manual", "make run MODEL=starter"),
    ],
)
def test_a_refusal_names_the_method_that_can(folder, values, method, follows):
    change(folder / "config.json", **values)
    with pytest.raises(KitError, match="tiny cannot be run with") as caught:
        ENGINES[method](pinned(folder), "cpu")
    assert follows in words(caught.value.hint)


def test_no_file_is_written_of_a_model_that_llamacpp_cannot_run(folder):
    change(folder / "config.json", hidden_act="relu")
    model = pinned(folder)
    with pytest.raises(KitError, match="hidden_act"):
        gguf_files.ensure(model, gguf_files.choose(model, "bf16"))
    assert not list(folder.glob("*.gguf"))


def test_shapes_are_what_transformers_makes():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 4}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}
    with torch.device("meta"):
        theirs = LlamaForCausalLM(LlamaConfig(**config)).state_dict()
    assert {name: tuple(value.shape) for name, value in theirs.items()} == llama.shapes(llama_config.completed(config))
