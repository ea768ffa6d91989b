"""What a config.json of the Llama architecture may say: the keys that decide about a result, each with the values that
a framework computes as they are meant.

An allow-list: a key that transformers knows and this list does not is refused by name, and so is a value that is not
among the right ones. Keys that nothing reads are noted and let be.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What computes, as the engines call it.
TORCH, LLAMACPP = "PyTorch", "llama.cpp"
ALL = (TORCH, LLAMACPP)

# What transformers' LlamaConfig takes for a key that is not there (models/llama/configuration_llama.py).
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "head_dim": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}

Allowed = Callable[[Any], bool]


@dataclass(frozen=True)
class Objection:
    """What stands in the way of a model, as a sentence's part, and the frameworks in whose way it stands."""

    text: str
    frameworks: tuple[str, ...] = ALL


def _is_whole(value: Any, low: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _whole(value: Any) -> bool:
    return _is_whole(value)


def _whole_or_none(value: Any) -> bool:
    return value is None or _is_whole(value)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _anything(value: Any) -> bool:
    return True


def _nothing(value: Any) -> bool:
    """null, false, 0, "" and what is empty."""
    return not value


def _ids(value: Any) -> bool:
    return value is None or all(_is_whole(one, -1) for one in (value if isinstance(value, list) else [value]))


def _one_of(*values: Any) -> Allowed:
    return lambda value: value in values


# The functions of transformers' ACT2FN that are of a number alone.
ACTIVATIONS = ("silu", "swish", "relu", "relu2", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu")

# Each key: what transformers computes as it is meant, and what llama.cpp does where that is less. Those of a generation
# are let be: what was asked for is what runs, whatever the model's own settings are.
KEYS: dict[str, tuple[Allowed, Allowed]] = {
    "model_type": (_one_of("llama"),) * 2,
    "architectures": (lambda value: not value or value == ["LlamaForCausalLM"],) * 2,
    **dict.fromkeys(
        ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), (_whole,) * 2
    ),
    "max_position_embeddings": (_whole,) * 2,
    "num_key_value_heads": (_whole_or_none,) * 2,
    "head_dim": (_whole_or_none,) * 2,
    "hidden_act": (_one_of(*ACTIVATIONS), _one_of("silu", "swish")),
    "rms_norm_eps": (_is_number,) * 2,
    "tie_word_embeddings": (_flag,) * 2,
    "attention_bias": (_flag, _nothing),
    "mlp_bias": (_flag, _nothing),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), (_ids,) * 2),
    # Judged by rope_objections, together.
    **dict.fromkeys(("rope_parameters", "rope_scaling", "rope_theta"), (_anything,) * 2),
    "partial_rotary_factor": (_one_of(None, 1.0),) * 2,
    # Of no bearing on a completion: training, the files' own story, and what a class of another task would read.
    **dict.fromkeys(
        (
            *("initializer_range", "attention_dropout", "pretraining_tp", "use_cache", "dtype", "torch_dtype"),
            *("transformers_version", "_name_or_path", "name_or_path", "id2label", "label2id", "num_labels"),
            *("problem_type", "finetuning_task", "task_specific_params", "auto_map", "return_dict", "use_return_dict"),
            *("tokenizer_class", "prefix", "sep_token_id", "decoder_start_token_id", "_commit_hash"),
            *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "temperature"),
            *("diversity_penalty", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty"),
            *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
            *("output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id"),
            *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
        ),
        (_anything,) * 2,
    ),
    # What would change the result, or what comes back, where it is set.
    **dict.fromkeys(
        (
            *("is_encoder_decoder", "is_decoder", "add_cross_attention", "cross_attention_hidden_size"),
            *("tie_encoder_decoder", "chunk_size_feed_forward", "pruned_heads", "torchscript", "use_bfloat16"),
            *("output_attentions", "output_hidden_states", "quantization_config", "compression_config"),
            *("sliding_window", "use_sliding_window"),
        ),
        (_nothing,) * 2,
    ),
    **dict.fromkeys(
        ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
        (_one_of(None, "sdpa", "eager"),) * 2,
    ),
}

# RoPE's forms: what each must say, and what it may (modeling_rope_utils.py, _compute_…_parameters).
ROPE_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ("original_max_position_embeddings",)),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
    "yarn": (
        ("factor",),
        (
            *("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale"),
            *("mscale_all_dim", "truncate"),
        ),
    ),
}
LLAMACPP_ROPE = ("default", "llama3")


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """The config with what transformers takes for what is not there."""
    whole = DEFAULTS | config
    if not whole["head_dim"]:
        whole["head_dim"] = whole["hidden_size"] // whole["num_attention_heads"]
    if not whole["num_key_value_heads"]:
        whole["num_key_value_heads"] = whole["num_attention_heads"]
    return whole


def objections(config: Any) -> list[Objection]:
    """What in a config.json the frameworks would not compute as it is meant."""
    if not isinstance(config, dict):
        return [Objection("config.json is not a table of settings")]
    if config.get("model_type") != "llama":
        return [Objection(f"config.json is of the architecture {config.get('model_type')!r}, and the kit runs 'llama'")]
    against = []
    unknown = [key for key in config if key not in KEYS]
    known = read_by_transformers(unknown)
    against += [
        Objection(f"config.json has {_shown(key, config[key])}, which the kit does not know") for key in sorted(known)
    ]
    for key, allowed in KEYS.items():
        if key in config:
            refusing = tuple(name for name, right in zip(ALL, allowed, strict=True) if not right(config[key]))
            if refusing:
                against.append(Objection(f"config.json has {_shown(key, config[key])}", refusing))
    return against or [*_shape_objections(completed(config)), *rope_objections(config)]


def unread(config: dict[str, Any]) -> list[str]:
    """The keys that nothing reads."""
    unknown = [key for key in config if key not in KEYS]
    return sorted(set(unknown) - read_by_transformers(unknown))


def _shown(key: str, value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"{key} = {text if len(text) < 80 else text[:77] + '…'}"


def _shape_objections(config: dict[str, Any]) -> list[Objection]:
    heads, kv_heads, head_dim = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    against = []
    if config["hidden_size"] % heads:
        against.append(Objection(f"hidden_size = {config['hidden_size']} is no multiple of {heads} heads"))
    if heads % kv_heads:
        against.append(Objection(f"{heads} heads cannot share num_key_value_heads = {kv_heads}"))
    if head_dim % 2:
        against.append(Objection(f"head_dim = {head_dim} is odd, and RoPE turns pairs"))
    return against


def rope(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """RoPE's kind, and all that is said of it, `rope_theta` among it: as transformers reads the two spellings."""
    settings = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    settings.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    kind = settings.pop("rope_type", None) or settings.pop("type", None) or "default"
    settings.pop("type", None)
    if kind == "llama3":
        settings.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    return kind, settings


def rope_objections(config: dict[str, Any]) -> list[Objection]:
    spellings = [config.get(key) for key in ("rope_scaling", "rope_parameters")]
    if not all(value is None or isinstance(value, dict) for value in spellings):
        return [Objection("config.json's rope_scaling or rope_parameters is no table of settings")]
    if all(spellings) and spellings[0] != spellings[1]:
        return [Objection("config.json has rope_scaling and rope_parameters, and they differ")]
    kind, settings = rope(config)
    if kind not in ROPE_KINDS:
        return [Objection(f"config.json has RoPE of the kind {kind!r}; the kit knows {', '.join(ROPE_KINDS)}")]
    needed, optional = ROPE_KINDS[kind]
    against = [
        Objection(f"config.json's RoPE of the kind {kind} has {key} = {settings.get(key)!r}")
        for key in ("rope_theta", *needed)
        if not _is_number(settings.get(key))
    ]
    if kind == "llama3" and not against and settings["high_freq_factor"] <= settings["low_freq_factor"]:
        against.append(Objection("config.json's RoPE has a high_freq_factor that is not above its low_freq_factor"))
    if kind == "llama3" and not _is_whole(settings["original_max_position_embeddings"]):
        against.append(Objection("config.json's RoPE has an original_max_position_embeddings that is no whole number"))
    if settings.pop("partial_rotary_factor", 1.0) not in (None, 1.0):
        against.append(Objection("config.json's RoPE has a partial_rotary_factor other than 1"))
    against += [
        Objection(f"config.json's RoPE of the kind {kind} has {_shown(key, settings[key])}")
        for key in sorted(set(settings) - {"rope_theta", *needed, *optional})
    ]
    if kind not in LLAMACPP_ROPE:
        against.append(Objection(f"config.json has RoPE of the kind {kind}", (LLAMACPP,)))
    return against


# Through which of transformers' files a Llama goes, from its folder to its tokens.
SOURCES = (
    *("configuration_utils.py", "modeling_utils.py", "core_model_loading.py", "modeling_rope_utils.py"),
    *("modeling_layers.py", "cache_utils.py", "masking_utils.py", "generation/*.py", "models/llama/*.py"),
    *("integrations/sdpa_attention.py", "integrations/eager_attention.py", "pipelines/base.py"),
    *("pipelines/__init__.py", "pipelines/text_generation.py", "models/auto/auto_factory.py"),
)


def read_by_transformers(keys: Iterable[str]) -> set[str]:
    """Those of the keys whose names stand as words in the source that a Llama goes through: they may decide something.

    Read as text: importing it takes seconds.
    """
    wanted = set(keys)
    package = importlib.util.find_spec("transformers") if wanted else None
    named: set[str] = set()
    for folder in (package.submodule_search_locations or ()) if package else ():
        for pattern in SOURCES:
            for path in Path(folder).glob(pattern):
                text = path.read_text(encoding="utf-8")
                named |= {key for key in wanted - named if re.search(rf"\b{re.escape(key)}\b", text)}
    return named
