"""The replay of a reference: what is planted is caught, and what differs for honest reasons is not."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace

import pytest

from kit.engines import imports, methods, torch_engine
from kit.models import registry
from kit.verify import golden, replay, tolerances
from kit.verify.golden import Golden

LAYER = 15


@pytest.fixture(scope="module")
def reference() -> Golden:
    return golden.read(registry.find("starter"))


@pytest.fixture(scope="module")
def short(reference) -> Golden:
    """Without the long prompt, which takes 5 s."""
    return replace(reference, entries=tuple(entry for entry in reference.entries if entry.name != "long"))


@pytest.fixture(scope="module")
def few(reference) -> Golden:
    """A third of those tokens: enough for a fault to show."""
    return replace(reference, entries=tuple(one for one in reference.entries if one.name in ("english", "question")))


@pytest.fixture(scope="module")
def load(starter):
    imports.import_all()
    import torch
    from transformers import AutoModelForCausalLM

    def call(dtype: str = "float32", **options):
        return AutoModelForCausalLM.from_pretrained(starter.folder, dtype=getattr(torch, dtype), **options)

    return call


@pytest.fixture(scope="module")
def model(load):
    return load()


@contextmanager
def planted(weight, change):
    """`change` made to a weight, and undone at the end: the next test's model is whole."""
    import torch

    kept = weight.detach().clone()
    with torch.no_grad():
        change(weight)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)
        assert torch.equal(weight, kept)


def noise(share: float):
    import torch

    def change(weight) -> None:
        generator = torch.Generator().manual_seed(0)
        weight.add_(torch.randn(weight.shape, generator=generator) * weight.std() * share)

    return change


def zero_a_row(weight) -> None:
    weight[7] = 0


def set_one_weight(weight) -> None:
    weight[3, 5] = 30


def swap_two_heads(weight) -> None:
    first, second = weight[0:64].clone(), weight[64:128].clone()
    weight[0:64], weight[64:128] = second, first


FAULTS = {
    "noise of 1 %": ("mlp.down_proj", noise(0.01)),
    "noise of 5 %": ("mlp.down_proj", noise(0.05)),
    "noise of 20 %": ("mlp.down_proj", noise(0.2)),
    "a row of zeros": ("mlp.down_proj", zero_a_row),
    "one weight of 30": ("self_attn.q_proj", set_one_weight),
    "two heads swapped": ("self_attn.q_proj", swap_two_heads),
}


def replayed(model, reference: Golden) -> replay.Replay:
    return replay.compare(lambda ids, first: torch_engine.measure(model, ids, first), reference)


def judged(model, reference: Golden, dtype: str = "float32"):
    return tolerances.judge(replayed(model, reference), "cpu", dtype)


# The finest and the coarsest here; the others among the slow ones.
QUICK = ("noise of 1 %", "two heads swapped")


@pytest.mark.parametrize(
    "fault", [fault if fault in QUICK else pytest.param(fault, marks=pytest.mark.slow) for fault in FAULTS]
)
def test_float32_sees_a_fault_in_one_of_the_weights(model, few, fault):
    name, change = FAULTS[fault]
    with planted(model.get_submodule(f"model.layers.{LAYER}.{name}").weight, change):
        verdict = judged(model, few)
    assert not verdict.ok
    assert verdict.faults


@pytest.mark.slow
def test_bfloat16_sees_what_is_gross(load, short, starter):
    assert judged(load("bfloat16"), short, "bfloat16").ok
    assert not judged(load("bfloat16", config=rope(starter.folder, rope_theta=10_000.0)), short, "bfloat16").ok


@pytest.mark.parametrize("share", [0.0001])
def test_noise_of_the_size_of_rounding_passes(model, few, share):
    with planted(model.get_submodule(f"model.layers.{LAYER}.mlp.down_proj").weight, noise(share)):
        assert judged(model, few).ok


@pytest.mark.slow
def test_another_number_of_threads_passes(model, short):
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        assert judged(model, short).ok
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_smaller_number_format_passes_within_its_own_tolerance_and_not_within_float32s(load, few, dtype):
    found = replayed(load(dtype), few)
    assert tolerances.judge(found, "cpu", dtype).ok
    assert not tolerances.judge(found, "cpu", "float32").ok


@pytest.mark.parametrize("method", [pytest.param("pipeline", marks=pytest.mark.slow), "manual"])
def test_either_method_passes(starter, short, method):
    with methods.of(method)(starter, "cpu", "float32") as engine:
        engine.load(256)
        assert tolerances.judge(replay.compare(engine.logprobs, short), "cpu", "float32").ok


def rope(model_folder, **changes):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_folder)
    config.rope_parameters = dict(config.rope_parameters) | changes
    return config


def test_another_rope_theta_is_seen(load, starter, few):
    assert not judged(load(config=rope(starter.folder, rope_theta=10_000.0)), few).ok


LLAMA_3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.slow
def test_wrong_rope_scaling_is_seen_beyond_a_thousand_tokens(load, starter, reference):
    """It hardly shows in short prompts: the long one is there for it."""
    config = rope(starter.folder, **LLAMA_3, original_max_position_embeddings=8192)
    only_long = replace(reference, entries=tuple(entry for entry in reference.entries if entry.name == "long"))
    assert only_long.entries[0].prompt_tokens == golden.LONG_TOKENS >= 2048
    verdict = judged(load(config=config), only_long)
    assert not verdict.ok
    assert verdict.replay.mean > 0.5


@pytest.mark.slow
def test_an_honest_model_passes_the_long_prompt_too(model, reference):
    verdict = judged(model, reference)
    assert verdict.ok, verdict.faults
    assert all(same == tokens for same, tokens in verdict.replay.common.values())


@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)])
def test_numbers_that_are_none_fail(model, few, value):
    def spoil(weight) -> None:
        weight.fill_(value)

    with planted(model.get_submodule(f"model.layers.{LAYER}.mlp.down_proj").weight, spoil):
        assert not judged(model, few).ok


def test_plausible_garbage_is_seen(model, few):
    """What a broken kernel gives: finite numbers of the right size in the wrong places."""

    def shuffle(weight) -> None:
        import torch

        weight.copy_(weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))])

    with planted(model.get_submodule(f"model.layers.{LAYER}.mlp.up_proj").weight, shuffle):
        verdict = judged(model, few)
    assert not verdict.ok
    assert verdict.replay.flips


@pytest.mark.parametrize(
    ("mean", "largest", "says"),
    [
        (0.2, 0.2, "0.2000 on average"),
        (0.01, 2.0, "one log-probability is off by 2.000 (x)"),
        (math.nan, 0.2, "nan on average"),
        (0.01, math.nan, "one log-probability is off by nan"),
    ],
)
def test_the_mean_and_the_largest_difference_fail_each_by_itself(mean, largest, says):
    verdict = tolerances.judge(replay.Replay(mean, largest, "x", 1, (), {}), "cpu", "bfloat16")
    assert not verdict.ok
    (fault,) = verdict.faults
    assert says in fault


def test_a_flip_is_explained_by_a_small_margin_and_not_by_a_large_one():
    found = replay.Replay(0.0, 0.0, "x", 1, (replay.Flip("x", 3, 0.01),), {})
    assert tolerances.judge(found, "cpu", "bfloat16").ok
    far = replace(found, flips=(replay.Flip("x", 3, 2.5),))
    verdict = tolerances.judge(far, "cpu", "bfloat16")
    assert verdict.unexplained == far.flips
    assert "x, position 3: 2.50 ahead in the reference" in verdict.faults[0]


def test_mps_has_a_tolerance_that_says_that_nobody_has_measured_it():
    table = tolerances.TABLE
    assert {device for device, _ in table} == {"cpu", "mps"}
    assert all(found.provisional == (device == "mps") for (device, _), found in table.items())
