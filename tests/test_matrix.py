"""Methods are held to each other: tiny models of every shape, each method against bare transformers, token by token.

Bare transformers is a loop of argmax over `model(ids).logits`, in float32, up to the model's first end token. A method
gives the same tokens, or refuses in a sentence.
"""

from __future__ import annotations

import json
from dataclasses import replace

import hypothesis
import pytest
import torch
from hypothesis import strategies

from kit import paths
from kit.engines import generate, methods
from kit.engines.request import Request
from kit.errors import KitError
from kit.models import examine
from tests import tiny_llamas
from tests.tiny_llamas import Recipe, added_token, settings_of, sharded, sharded_beside, tensors, without_tokenizer

TOKENS = 6
# How far the best token must lead, in units of the logits' spread: llama.cpp rounds activations to bfloat16 too.
MARGIN = 0.13
SEEDS = 60
# Where the search for a recipe's seed begins; it found these, from 0 on. On another machine it may go on from there.
USUAL = 5
BEGIN = {"one head holds all keys": 15, "small heads": 30, "two heads": 18, "theta not said": 19, "yarn": 23}
BEGIN |= {"theta in parameters": 16, "linear scaling": 15, "padded vocabulary": 12, "an added token": 14}
BEGIN |= {"attention biases": 10, "llama3 scaling": 8, "one layer": 7, "large heads": 0, "wide": 0, "large epsilon": 4}
BEGIN |= {"untied": 3, "every head its own keys": 3, "keys not said": 3, "mlp biases": 1, "llama3 parameters": 2}
BEGIN |= {
    "relu": 3,
    "gelu": 6,
    "sentencepiece": 4,
    "sentencepiece, one of": 4,
    "begin twice": 3,
    "end in the prompt": 1,
}

NONE: tuple[str, ...] = ()
TORCH = ("pipeline", "manual")
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADDING = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
PADDING |= {"pad_type_id": 0, "pad_token": "!"}


def void(_: object) -> None:
    pass


def drop_head_norm(values: dict[str, torch.Tensor]) -> None:
    del values["model.norm.weight"]


RECIPES = {
    # Shapes.
    "plain": Recipe(),
    "untied": Recipe(config={"tie_word_embeddings": False}),
    "one head holds all keys": Recipe(config={"num_key_value_heads": 1}),
    "every head its own keys": Recipe(config={"num_key_value_heads": 4}),
    "keys not said": Recipe(config={"num_key_value_heads": None}),
    "head_dim not said": Recipe(config={"head_dim": None}),
    "small heads": Recipe(config={"head_dim": 8}),
    "large heads": Recipe(config={"head_dim": 32}),
    "one layer": Recipe(config={"num_hidden_layers": 1}),
    "two heads": Recipe(config={"num_attention_heads": 2, "head_dim": 32, "num_key_value_heads": 1}),
    "wide": Recipe(config={"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 160}),
    "epsilon not said": Recipe(config={"rms_norm_eps": None}),
    "large epsilon": Recipe(config={"rms_norm_eps": 0.1}),
    "attention biases": Recipe(config={"attention_bias": True}, runs=TORCH),
    "mlp biases": Recipe(config={"mlp_bias": True}, runs=TORCH),
    # RoPE, in both spellings.
    "theta not said": Recipe(config={"rope_theta": None}),
    "theta in parameters": Recipe(
        config={"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}
    ),
    "llama3 scaling": Recipe(config={"rope_scaling": LLAMA3}),
    "llama3 parameters": Recipe(config={"rope_theta": None, "rope_parameters": {**LLAMA3, "rope_theta": 5000.0}}),
    "linear scaling": Recipe(config={"rope_scaling": {"type": "linear", "factor": 4.0}}, runs=TORCH),
    "dynamic scaling": Recipe(config={"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, runs=TORCH),
    "yarn": Recipe(
        config={"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
        runs=TORCH,
    ),
    "half of each head turns": Recipe(config={"partial_rotary_factor": 0.5}, runs=NONE),
    # Files and number formats.
    "shards": Recipe(change=sharded),
    "float32": Recipe(dtype=torch.float32),
    "float16": Recipe(dtype=torch.float16),
    "norms in float32": Recipe(
        change=tensors(lambda values: values.update({n: v.float() for n, v in values.items() if "norm" in n}))
    ),
    "float64": Recipe(change=tensors(lambda v: v.update({n: t.double() for n, t in v.items()})), runs=NONE),
    "no word of a number format": Recipe(config={"torch_dtype": None}),
    "another word of it": Recipe(config={"torch_dtype": "float16"}),
    "consolidated beside shards": Recipe(change=sharded_beside("consolidated.safetensors")),
    "another training beside shards": Recipe(change=sharded_beside("model.safetensors"), runs=NONE),
    # Tensors that do not fit.
    "no head": Recipe(change=settings_of("config.json", tie_word_embeddings=False), runs=NONE),
    "no last norm": Recipe(change=tensors(drop_head_norm), runs=NONE),
    "one too many": Recipe(change=tensors(lambda v: v.update({"model.extra.weight": torch.ones(4)})), runs=NONE),
    "a copy as head": Recipe(
        change=tensors(lambda v: v.update({"lm_head.weight": v["model.embed_tokens.weight"].clone()}))
    ),
    "another head": Recipe(
        change=tensors(lambda v: v.update({"lm_head.weight": v["model.embed_tokens.weight"] * 2})), runs=NONE
    ),
    "computed frequencies": Recipe(
        change=tensors(lambda v: v.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    ),
    "more rows said than there are": Recipe(change=settings_of("config.json", vocab_size=900), runs=NONE),
    "more layers said": Recipe(change=settings_of("config.json", num_hidden_layers=3), runs=NONE),
    "fewer layers said": Recipe(change=settings_of("config.json", num_hidden_layers=1), runs=NONE),
    # What is computed.
    "relu": Recipe(config={"hidden_act": "relu"}, runs=TORCH),
    "gelu": Recipe(config={"hidden_act": "gelu_pytorch_tanh"}, runs=TORCH),
    "quantised": Recipe(config={"quantization_config": {"quant_method": "bitsandbytes"}}, runs=NONE),
    "a window": Recipe(config={"sliding_window": 4, "layer_types": ["sliding_attention"] * 2}, runs=NONE),
    "keys that nothing reads": Recipe(config={"is_llama_config": True, "rope_interleaved": False}),
    "another architecture": Recipe(config={"model_type": "mistral"}, runs=NONE),
    # Tokenizers.
    "llama 3's tokenizer": Recipe(tokenizer="llama3"),
    "gpt-2's tokenizer": Recipe(tokenizer="gpt2", runs=TORCH),
    "sentencepiece": Recipe(tokenizer="sentencepiece", runs=TORCH),
    "sentencepiece, one of": Recipe(tokenizer="sentencepiece", prompt="one of", runs=TORCH),
    "padded vocabulary": Recipe(config={"vocab_size": 448}),
    "an added token": Recipe(change=added_token(), prompt="one <own> and"),
    "an added token without a row": Recipe(change=added_token(0)),
    "it in the prompt": Recipe(change=added_token(0), prompt="one <own> and", runs=NONE),
    "truncation left": Recipe(change=settings_of("tokenizer.json", truncation=TRUNCATION)),
    "padding left": Recipe(change=settings_of("tokenizer.json", padding=PADDING)),
    "a template of its own": Recipe(
        change=lambda folder: (folder / "chat_template.jinja").write_text("{{ x }}") and None
    ),
    "begin twice": Recipe(prompt="<|begin_of_text|>one of"),
    "end in the prompt": Recipe(prompt="one<|end_of_text|> of"),
    "no tokenizer.json": Recipe(change=without_tokenizer, runs=NONE),
    # The model's own settings of a generation: what was asked for is what runs.
    **{
        f"generation: {name}": Recipe(generation={name: value})
        for name, value in {
            "repetition_penalty": 9.0,
            "no_repeat_ngram_size": 1,
            "bad_words_ids": [[token] for token in range(5, 300)],
            "suppress_tokens": list(range(5, 300)),
            "begin_suppress_tokens": list(range(5, 300)),
            "forced_bos_token_id": 7,
            "forced_eos_token_id": 7,
            "sequence_bias": [[[7], 100.0]],
            "do_sample": True,
            "temperature": 9.0,
            "top_k": 3,
            "typical_p": 0.1,
            "min_p": 0.5,
            "epsilon_cutoff": 0.5,
            "num_beams": 3,
            "penalty_alpha": 0.6,
            "max_length": 3,
            "max_new_tokens": 2,
            "min_length": 90,
            "min_new_tokens": 90,
            "length_penalty": 9.0,
            "guidance_scale": 3.0,
            "encoder_repetition_penalty": 9.0,
            "exponential_decay_length_penalty": [1, 9.0],
            "num_return_sequences": 2,
            "remove_invalid_values": True,
            "return_dict_in_generate": True,
            "output_scores": True,
            "use_cache": False,
            "cache_implementation": "static",
            "stop_strings": ["e", " "],
            "max_time": 0.0,
            "prompt_lookup_num_tokens": 3,
            "renormalize_logits": True,
            "watermarking_config": {"greenlist_ratio": 0.5, "bias": 50.0, "hashing_key": 1},
        }.items()
    },
}


def bare(folder, prompt: str) -> tuple[list[int], list[int], float, str | None]:
    """The same as below, with the closest decision's margin alone."""
    asked, ids, margins, text = bare_with_margins(folder, prompt)
    return asked, ids, min(margins), text


def bare_with_margins(folder, prompt: str) -> tuple[list[int], list[int], list[float], str | None]:
    """The prompt's ids, the new ones, by how much each decision was clear, and the text behind the prompt's."""
    from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, generation_config=GenerationConfig(), dtype=torch.float32)
    asked = tokenizer(prompt)["input_ids"]
    ids, margins = list(asked), []
    ends = ends_of(folder)
    with torch.inference_mode():
        for _ in range(TOKENS):
            logits = model(torch.tensor([ids])).logits[0, -1]
            best = logits.topk(2).values
            margins.append(float((best[0] - best[1]) / logits.std()))
            ids.append(int(logits.argmax()))
            if ids[-1] in ends:
                break
    texts = [tokenizer.decode(each, skip_special_tokens=True) for each in (asked, ids)]
    # Bytes that are tokens of their own may make another character of the prompt's last ones.
    text = texts[1][len(texts[0]) :] if texts[1].startswith(texts[0]) else None
    return asked, ids[len(asked) :], margins, text


def ends_of(folder) -> set[int]:
    ends: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        value = json.loads((folder / name).read_text()).get("eos_token_id")
        ends |= set(value if isinstance(value, list) else [value])
    return ends


@pytest.fixture(scope="module")
def baked(tmp_path_factory):
    """Each recipe's folder, at the first seed whose tokens are clear, and what bare transformers makes of it."""

    known: dict[str, tuple] = {}  # what the model's own settings of a generation are does not matter to them

    def bake(name: str, recipe: Recipe):
        folder = tmp_path_factory.mktemp("tiny") / "tiny"
        as_plain = replace(recipe, generation={}) == RECIPES["plain"]
        if as_plain and "plain" in known:
            seed, truth = known["plain"]
            tiny_llamas.bake(recipe, folder, seed)
            return folder, truth
        for seed in (BEGIN.get(name, USUAL), *range(SEEDS)):
            tiny_llamas.bake(recipe, folder, seed)
            if not recipe.runs:
                return folder, None
            truth = bare(folder, recipe.prompt)
            if truth[2] > MARGIN and len(set(truth[1])) > 2 and truth[3] is not None:
                if as_plain:
                    known["plain"] = seed, truth
                return folder, truth
        raise AssertionError(f"no seed gives {name} clear tokens")

    return bake


# Of a model's own settings those that changed something once; the others in make test-slow.
OFTEN = ("repetition_penalty", "suppress_tokens", "num_beams", "max_length", "stop_strings", "num_return_sequences")
SELDOM = [name for name in RECIPES if name.startswith("generation: ") and not name.endswith(OFTEN)]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SELDOM else ()) for name in RECIPES]
)
def test_every_method_gives_bare_transformers_tokens_or_refuses(name, baked, monkeypatch):
    recipe = RECIPES[name]
    folder, truth = baked(name, recipe)
    monkeypatch.setattr(paths, "MODELS", folder.parent)
    model = tiny_llamas.model_of(folder)
    for method in methods.NAMES:
        number_format = {"quant": "bf16"} if methods.of(method).setting == "quant" else {"dtype": "float32"}
        pieces: list[str] = []
        request = Request(model, recipe.prompt, method, "cpu", max_new_tokens=TOKENS, **number_format)
        if method not in recipe.runs:
            with pytest.raises(KitError) as caught:
                generate.complete(request, pieces.append)
            assert len(str(caught.value)) > 20
            assert caught.value.hint
            continue
        completion = generate.complete(request, pieces.append)
        assert truth is not None
        assert (method, completion.token_ids) == (method, truth[1])
        assert completion.prompt_tokens == len(truth[0])
        assert completion.text == truth[3]
        # Of bytes that make no character in the end, some may have looked like one on the way.
        assert "".join(pieces) == completion.text or "\ufffd" in completion.text


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_a_token_that_any_file_says_ends_a_text_ends_it_in_every_method(name, baked, monkeypatch):
    recipe = RECIPES["plain"]
    folder, truth = baked("plain", recipe)
    monkeypatch.setattr(paths, "MODELS", folder.parent)
    tiny_llamas.edit(folder / name, eos_token_id=truth[1][2])
    model = tiny_llamas.model_of(folder)
    assert truth[1][2] in examine.examination(model).ends
    expected = truth[1][: truth[1].index(truth[1][2]) + 1]
    for method in methods.NAMES:
        request = Request(model, recipe.prompt, method, "cpu", max_new_tokens=TOKENS)
        assert generate.complete(request).token_ids == expected
        # And where none may end it, that token is none of the text, in every method.
        forced = generate.complete(Request(model, recipe.prompt, method, "cpu", max_new_tokens=TOKENS, ignore_eos=True))
        assert len(forced.token_ids) == TOKENS
        assert truth[1][2] not in forced.token_ids


# --- At random, and the same each time --------------------------------------------------------------------------------

DRAWN = hypothesis.settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
UNICODE = strategies.one_of(
    strategies.text(min_size=1, max_size=12),
    strategies.lists(
        strategies.sampled_from(
            ["🦜", "👩\u200d👧", "e\u0301", "ﷺ", "\u00a0", "<|x|>", " ", "\n", "12", "the", " of", "'s"]
        ),
        min_size=1,
        max_size=8,
    ).map("".join),
)


def hold(folder, prompt: str) -> None:
    """Every method against bare transformers; llama.cpp up to the first token that does not lead by a clear margin."""
    asked, ids, margins, text = bare_with_margins(folder, prompt)
    model = tiny_llamas.model_of(folder)
    for method in methods.NAMES:
        number_format = {"quant": "bf16"} if methods.of(method).setting == "quant" else {"dtype": "float32"}
        pieces: list[str] = []
        request = Request(model, prompt, method, "cpu", max_new_tokens=len(ids), **number_format)
        completion = generate.complete(request, pieces.append)
        clear = len(ids)
        if methods.of(method).setting == "quant":
            clear = next((place for place, margin in enumerate(margins) if margin < MARGIN), len(ids))
        assert completion.prompt_tokens == len(asked)
        assert completion.token_ids[:clear] == ids[:clear]
        if completion.token_ids == ids and text is not None:
            assert completion.text == text
        assert "".join(pieces) == completion.text or "\ufffd" in completion.text


@pytest.fixture(scope="module")
def drawn_on(baked):
    return baked("plain", RECIPES["plain"])[0]


@hypothesis.settings(DRAWN, max_examples=12)
@hypothesis.given(prompt=UNICODE)
def test_any_prompt_gives_the_same_tokens_in_every_method(drawn_on, prompt):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "MODELS", drawn_on.parent)
        hold(drawn_on, prompt)


@strategies.composite
def recipes(draw: strategies.DrawFn) -> Recipe:
    kv_heads = draw(strategies.sampled_from([1, 2, 3]))
    heads = kv_heads * draw(strategies.integers(1, 3))
    config = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": heads * 16}
    config |= {"head_dim": draw(strategies.sampled_from([None, 8, 16, 24]))}
    config |= {"num_hidden_layers": draw(strategies.integers(1, 3)), "tie_word_embeddings": draw(strategies.booleans())}
    config |= {"intermediate_size": draw(strategies.sampled_from([32, 96, 160]))}
    config |= {"rope_theta": draw(strategies.sampled_from([100.0, 1e4, 5e5]))}
    config |= {"rope_scaling": LLAMA3} if draw(strategies.booleans()) else {}
    dtype = draw(strategies.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    change = sharded if draw(strategies.booleans()) else void
    return Recipe(config, dtype=dtype, tokenizer=draw(strategies.sampled_from(["smollm", "llama3"])), change=change)


def hold_recipe(recipe: Recipe, prompt: str, folder) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "MODELS", folder)
        examine._known.clear()
        tiny_llamas.bake(recipe, folder / "drawn", 1)
        hold(folder / "drawn", prompt)


@hypothesis.settings(DRAWN, max_examples=8)
@hypothesis.given(recipe=recipes(), prompt=UNICODE)
def test_any_legal_config_gives_the_same_tokens_in_every_method(tmp_path_factory, recipe, prompt):
    hold_recipe(recipe, prompt, tmp_path_factory.mktemp("drawn"))


@pytest.mark.slow
@hypothesis.settings(DRAWN, max_examples=100)
@hypothesis.given(recipe=recipes(), prompt=UNICODE)
def test_a_hundred_legal_configs_give_the_same_tokens_in_every_method(tmp_path_factory, recipe, prompt):
    hold_recipe(recipe, prompt, tmp_path_factory.mktemp("drawn"))
