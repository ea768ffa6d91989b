"""Text comes as soon as it is whole, and adds up to the decoded completion."""

from __future__ import annotations

import pytest
import torch

from kit.engines.methods import ManualEngine
from kit.engines.torch_engine import TokenStream


@pytest.fixture(scope="module")
def engine(starter):
    return ManualEngine(starter, "cpu")


@pytest.fixture(scope="module")
def tokenizer(engine):
    return engine.tokenizer


def stream_of(engine, ids, prompt=(1, 2)):
    pieces: list[str] = []
    stream = TokenStream(engine, list(prompt), pieces.append)
    stream.put(torch.tensor([prompt]))
    for token_id in ids:
        stream.put(torch.tensor([token_id]))
    stream.end()
    return stream, pieces


@pytest.mark.parametrize(
    "text", ["plain words", " leading and  double ", "👋🏽 नमस्ते สวัสดี", "\n\n\tx = 1\n", "a<|im_end|>", ""]
)
def test_the_pieces_add_up_to_the_decoded_tokens(engine, tokenizer, text):
    ids = tokenizer.encode(text)
    stream, pieces = stream_of(engine, ids)
    assert "".join(pieces) == stream.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert stream.token_ids == ids
    assert stream.prompt_ids == [1, 2]


def test_each_word_comes_with_its_token_and_an_emoji_when_it_is_whole(engine, tokenizer):
    ids = tokenizer.encode("one two 👋")
    _, pieces = stream_of(engine, ids)
    assert pieces[:2] == ["one", " two"]
    assert len(ids) > len(pieces)
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_the_last_token_left_unfinished_is_shown_as_such(engine, tokenizer):
    ids = tokenizer.encode("👋")[:-1]
    stream, _ = stream_of(engine, ids)
    assert stream.text == tokenizer.decode(ids)
    assert "\ufffd" in stream.text


def test_times_are_one_a_token_and_in_order(engine):
    stream, _ = stream_of(engine, [5, 6, 7])
    assert len(stream.times) == 3
    assert stream.times == sorted(stream.times)
