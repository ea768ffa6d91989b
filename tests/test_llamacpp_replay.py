"""The replay through the real llama.cpp: it reads every token's log-probability, and tells a fault from 4 bits."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import replace

import pytest

from kit.engines.llamacpp_engine import LlamacppEngine
from kit.formats import llama, to_gguf
from kit.formats.gguf import GgufFile
from kit.verify import golden, replay, tolerances


@pytest.fixture(scope="module")
def short(starter):
    """The reference without its long prompt."""
    reference = golden.read(starter)
    return replace(reference, entries=tuple(entry for entry in reference.entries if entry.name != "long"))


@pytest.fixture
def verdict(starter, short):
    def judge(path=None, name="auto"):
        with LlamacppEngine(starter, "cpu", name) as engine:
            engine.quant = replace(engine.quant, path=path or engine.quant.path)
            engine.load(256)
            return tolerances.judge(replay.compare(engine.logprobs, short), "cpu", engine.quant.name)

    return judge


@pytest.mark.slow
def test_the_starters_own_file_is_within_the_tolerance(verdict):
    found = verdict()
    assert found.ok, found.faults
    assert found.replay.positions == 338
    assert found.replay.mean > 0.01  # 4 bits are told from float32


def converted(starter, folder, quant: str):
    path = folder / f"{quant}.gguf"
    to_gguf.convert(starter.folder, [starter.folder / "model.safetensors"], "starter", quant, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["bf16", "q8_0", "q4_0"])
def test_a_file_that_was_written_here_is_within_its_tolerance(quant, starter, verdict, tmp_path):
    found = verdict(converted(starter, tmp_path, quant), quant)
    assert found.ok, found.faults


@pytest.mark.slow
def test_garbage_is_caught_even_in_4_bits(starter, verdict, tmp_path, monkeypatch):
    """The heads in the wrong order in every layer: text that still looks like one."""
    monkeypatch.setattr(llama, "permute", lambda values, heads: values)
    assert not verdict(converted(starter, tmp_path, "q4_0"), "q4_0").ok


def damaged(starter, folder, tensors: list[str], change):
    """The GGUF with the bytes of some tensors changed."""
    path = folder / "damaged.gguf"
    shutil.copyfile(starter.folder / "starter-q4_1.gguf", path)
    known = GgufFile(path)
    with path.open("r+b") as file:
        for tensor in tensors:
            entry = known.tensors[tensor]
            size = entry.shape[0] * entry.shape[1] // 32 * 20  # a Q4_1 block: 32 numbers in 20 bytes
            file.seek(entry.offset)
            content = change(file.read(size), size // entry.shape[0])
            file.seek(entry.offset)
            file.write(content)
    return path


@pytest.mark.slow
def test_a_zeroed_matrix_is_caught(starter, verdict, tmp_path):
    path = damaged(starter, tmp_path, ["blk.15.ffn_down.weight"], lambda content, row: bytes(len(content)))
    assert not verdict(path).ok


@pytest.mark.slow
def test_swapped_query_heads_are_caught(starter, verdict, tmp_path):
    """What a wrong permutation at the conversion would do: to every layer. (In one alone, 4 bits hide it.)"""

    def swap(content: bytes, row: int) -> bytes:
        head = 64 * row
        return content[head : 2 * head] + content[:head] + content[2 * head :]

    queries = [f"blk.{layer}.attn_q.weight" for layer in range(30)]
    assert not verdict(damaged(starter, tmp_path, queries, swap)).ok


def test_tokens_that_end_inside_a_character_are_read_too(starter, short):
    entry = next(entry for entry in short.entries if entry.name == "scripts")
    with LlamacppEngine(starter, "cpu") as engine:
        engine.load(len(entry.ids))
        found = engine.logprobs(entry.ids, entry.first)
    logprobs, best = [position.logprob for position in found], [position.best for position in found]
    assert len(found) == len(entry.logprobs)
    assert statistics.fmean(abs(a - b) for a, b in zip(logprobs, entry.logprobs, strict=True)) < 0.1
    # Where the reference is sure of a token, that is the most probable one here.
    sure = [place for place, margin in enumerate(entry.margins) if margin > 1.5]
    assert len(sure) > 30
    assert all(best[place] == entry.ids[entry.first + place] for place in sure)
