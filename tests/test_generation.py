"""One Request -> one Completion: the real transformers on the real starter model, and on a tiny one."""

from __future__ import annotations

import sys

import pytest

from kit.engines import devices, generate, methods
from kit.engines.methods import ManualEngine, PipelineEngine
from kit.engines.request import Request
from kit.errors import KitError, WrongUsage
from scripts.hints import words
from tests import answers
from tests.conftest import run_command

MARK = "The capital of France is"


def completing(model):
    def call(prompt=MARK, on_text=lambda text: None, **fields):
        return generate.complete(Request(model, prompt, **{"max_new_tokens": 12, **fields}), on_text)

    return call


@pytest.fixture
def complete(starter):
    return completing(starter)


@pytest.fixture
def complete_tiny(tiny):
    return completing(tiny)


@pytest.mark.container
def test_the_methods_give_the_same_tokens_and_the_same_completion(complete):
    prompt = "Hello, who or what are you ?"
    pipeline = complete(prompt, method="pipeline", max_new_tokens=12)
    manual = complete(prompt, method="manual", max_new_tokens=12)
    assert pipeline.token_ids == manual.token_ids
    assert pipeline.text == manual.text
    assert pipeline.prompt_tokens == manual.prompt_tokens == 8


@pytest.mark.container
def test_every_method_goes_on_as_anybody_would(complete):
    """llama.cpp computes with other numbers (4 bits of its own, not bfloat16), and says the same where it is sure."""
    said = [complete(answers.PROMPT, method=method, max_new_tokens=answers.TOKENS) for method in methods.NAMES]
    assert [completion.text for completion in said] == [answers.ANSWER] * 3
    assert len({tuple(completion.token_ids) for completion in said}) == 1
    assert len({completion.prompt_tokens for completion in said}) == 1


def test_it_is_what_the_bare_library_generates(complete, starter):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(starter.folder)
    model = AutoModelForCausalLM.from_pretrained(starter.folder, dtype=torch.bfloat16)
    inputs = tokenizer(MARK, return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert complete(method="manual").token_ids == expected.tolist()


@pytest.mark.parametrize("method", methods.NAMES)
def test_text_streams_as_it_is_generated(complete_tiny, method):
    pieces: list[str] = []
    completion = complete_tiny(on_text=pieces.append, method=method)
    assert len(pieces) > 6
    assert "".join(pieces) == completion.text


@pytest.mark.parametrize("method", methods.NAMES)
def test_the_same_seed_draws_the_same_text_and_another_seed_another(complete_tiny, method):
    drawn = [complete_tiny(method=method, temperature=1.0, seed=seed, max_new_tokens=5).token_ids for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("method", methods.NAMES)
def test_without_an_end_it_goes_on_to_the_last_token_asked_for(complete, method):
    """What makes the rows of a bench compare."""
    chat = "<|im_start|>user\nSay only the word hi.<|im_end|>\n<|im_start|>assistant\nhi"
    ended = complete(chat, method=method, max_new_tokens=12)
    assert ended.new_tokens < 12
    assert ended.token_ids[-1] == 2
    forced = complete(chat, method=method, max_new_tokens=12, ignore_eos=True)
    assert forced.new_tokens == 12
    assert forced.token_ids[: ended.new_tokens - 1] == ended.token_ids[:-1]


def test_a_temperature_next_to_0_draws_what_greedy_decoding_takes(complete_tiny):
    assert complete_tiny(temperature=1e-320, max_new_tokens=6).token_ids == complete_tiny(max_new_tokens=6).token_ids


def test_greedy_decoding_does_not_look_at_the_seed(complete_tiny):
    assert complete_tiny(seed=1, max_new_tokens=5).token_ids == complete_tiny(seed=2, max_new_tokens=5).token_ids


@pytest.mark.container
def test_facts_are_of_the_run(complete):
    completion = complete(max_new_tokens=5, dtype="float32", device="cpu")
    assert completion.dtype == "float32"
    assert completion.device == "cpu"
    assert completion.new_tokens == len(completion.token_ids) == 5
    parts = completion.import_s + completion.load_s + completion.first_token_s
    assert 0 < parts < completion.total_s
    assert completion.decode_tokens_per_s
    assert completion.peak_rss_bytes > 250e6
    assert completion.device_memory_bytes is None
    assert completion.versions["torch"].startswith("2.")


def test_a_model_that_loads_in_another_number_format_than_asked_is_an_error(starter, monkeypatch):
    real = ManualEngine.open
    monkeypatch.setattr(ManualEngine, "open", lambda engine: real(engine).float())
    request = Request(starter, MARK, "manual", max_new_tokens=1, device="cpu", dtype="bfloat16")
    with pytest.raises(KitError, match="bfloat16 was asked for, and starter was loaded in float32"):
        generate.complete(request)


def test_one_token_has_no_decode_rate(complete):
    assert complete(max_new_tokens=1).decode_tokens_per_s is None


def test_the_device_is_told_before_the_weights_are_read(starter, monkeypatch):
    order = []
    real = ManualEngine.open
    monkeypatch.setattr(ManualEngine, "open", lambda engine: (order.append("load"), real(engine))[1])
    request = Request(starter, MARK, "manual", max_new_tokens=1)
    generate.complete(request, on_device=lambda device: order.append(device.name))
    assert order == ["cpu", "load"]


@pytest.mark.parametrize("engine", [PipelineEngine, ManualEngine])
@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_weights_are_read_straight_onto_the_device(engine, device, starter, monkeypatch):
    """What is asked of transformers, at its boundary: a device_map, and no copy by .to() afterwards."""
    import torch
    import transformers

    asked: dict[str, object] = {}

    class Stop(Exception):
        pass

    def record(*_: object, **options: object) -> None:
        asked.update(options)
        raise Stop

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", record)
    monkeypatch.setattr(devices, "mps_obstacle", lambda here, look: None)
    with pytest.raises(Stop):
        engine(starter, device).open()
    assert asked["device_map"] == {"": device}
    assert asked["dtype"] in ("bfloat16", torch.bfloat16)


@pytest.mark.parametrize("engine", [PipelineEngine, ManualEngine])
def test_the_model_is_not_copied_after_it_was_read(engine, starter, monkeypatch):
    import transformers

    moved = []
    real = transformers.LlamaForCausalLM.to
    monkeypatch.setattr(
        transformers.LlamaForCausalLM, "to", lambda self, *a, **k: (moved.append((a, k)), real(self, *a, **k))[1]
    )
    engine(starter, "cpu").open()
    assert moved == []


def test_converting_on_mps_loads_one_tensor_at_a_time(starter, monkeypatch):
    """bfloat16 -> float32 while loading in parallel can crash on MPS; the checkpoint's own dtype loads in parallel."""
    import os

    monkeypatch.delenv("HF_DEACTIVATE_ASYNC_LOAD", raising=False)
    seen = []

    def record(*_: object) -> None:
        seen.append(os.environ.get("HF_DEACTIVATE_ASYNC_LOAD"))
        raise KitError("stop")

    monkeypatch.setattr(ManualEngine, "open", record)
    monkeypatch.setattr(devices, "mps_obstacle", lambda here, look: None)
    for dtype in ("bfloat16", "float32"):
        with pytest.raises(KitError, match="stop"):
            generate.complete(Request(starter, MARK, "manual", "mps", dtype))
    assert seen == [None, "1"]
    monkeypatch.delenv("HF_DEACTIVATE_ASYNC_LOAD")


@pytest.mark.parametrize(("dtype", "backend"), [("bfloat16", "mmap"), ("float16", "pread")])
def test_a_checkpoint_that_is_converted_is_read_and_not_mapped(tiny, monkeypatch, dtype, backend):
    """Mapped, its pages would stay beside the converted copy. The weights are the same bits either way."""
    import torch
    from transformers import AutoModelForCausalLM, modeling_utils

    expected = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=getattr(torch, dtype)).state_dict()
    backends, own = [], modeling_utils.safe_open
    monkeypatch.setattr(modeling_utils, "safe_open", lambda *a, **k: (backends.append(k["backend"]), own(*a, **k))[1])
    engine = ManualEngine(tiny, "cpu", dtype)
    engine.load(1)
    loaded = engine.loaded.state_dict()
    assert backends == [backend]
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    # And the library is as it was for whoever uses it next.
    AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32)
    assert backends == [backend, "mmap"]


@pytest.mark.skipif(sys.platform != "linux", reason="macOS counts a process's memory in another way")
@pytest.mark.container
@pytest.mark.slow
def test_code_that_only_the_imports_ran_is_given_back():
    program = """
from pathlib import Path
from kit.engines import imports, memory
def resident():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1])
imports.import_all()
before = resident()
memory.release_code()
print(before - resident(), before)
import torch
assert (torch.ones(3, 3) @ torch.ones(3, 3)).sum() == 27
"""
    done = run_command([sys.executable, "-c", program])
    assert done.status == 0, done.err
    freed, before = map(int, done.out.split())
    assert freed > before / 2


def test_memory_that_runs_out_says_what_to_do(starter, monkeypatch):
    def exhaust(*_: object) -> None:
        raise RuntimeError("MPS backend out of memory (MPS allocated: 7.9 GB)")

    monkeypatch.setattr(ManualEngine, "open", exhaust)
    with pytest.raises(KitError, match="does not fit into the memory of cpu") as caught:
        generate.complete(Request(starter, MARK, "manual"))
    assert "make run MODEL=starter" in words(caught.value.hint)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"method": "magic"}, "METHOD=magic is unknown. Valid: pipeline, manual"),
        ({"max_new_tokens": 0}, "MAX_NEW_TOKENS=0"),
        ({"temperature": -1.0}, "TEMPERATURE=-1.0"),
        ({"prompt": "word " * 9000}, r"the prompt is 9001 tokens long, and the context of starter holds 8192"),
        ({"max_new_tokens": 8190}, r"MAX_NEW_TOKENS=8190 do not fit into the context of starter \(8192 tokens\)"),
    ],
)
def test_a_request_that_no_machine_could_fulfil_is_wrong_usage(complete, fields, says):
    with pytest.raises(WrongUsage, match=says):
        complete(**fields)


def test_too_many_new_tokens_hint_at_how_many_fit(complete):
    with pytest.raises(WrongUsage) as caught:
        complete(max_new_tokens=8190)
    assert "make run MAX_NEW_TOKENS=8187" in words(caught.value.hint)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("What is the capital of Germany?", "the model ended the text at once: a beginning"),
        ("Water boils at\n", "the prompt ends with a line end, which is a part of it"),
    ],
)
def test_what_would_surprise_a_newcomer_is_said(complete, prompt, says):
    notes = complete(prompt, method="llamacpp", max_new_tokens=3).notes
    assert any(says in note for note in notes)
    assert complete(method="llamacpp", max_new_tokens=3).notes == ()
