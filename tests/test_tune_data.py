"""One's own text: what is read, what is held out, and the blocks that a model learns from."""

from __future__ import annotations

import json
import random

import pytest
from tokenizers import Tokenizer

from kit.errors import WrongUsage
from kit.tune import data, evaluate
from kit.tune.data import Sample, Tokens


@pytest.fixture(scope="module")
def tokenizer(starter) -> Tokenizer:
    return Tokenizer.from_file(str(starter.folder / "tokenizer.json"))


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_paragraphs_are_what_blank_lines_separate(tmp_path):
    path = write(tmp_path, "notes.txt", "One line\nand the next.\n\n  \nTwo.\r\n\r\nThree.\n")
    read = data.read(path)
    assert [one.text for one in read.samples] == ["One line\nand the next.", "Two.", "Three."]
    assert (read.name, read.kind) == ("notes.txt", "text")


def test_of_a_text_without_blank_lines_each_line_is_one(tmp_path):
    assert [one.text for one in data.read(write(tmp_path, "n.txt", "One.\nTwo.\n")).samples] == ["One.", "Two."]


def test_a_folder_gives_its_texts_in_the_order_of_their_names_and_nothing_else(tmp_path):
    for name, content in {"b.md": "B", "a.txt": "A", "sub/c.txt": "C", "d.py": "D"}.items():
        write(tmp_path, f"notes/{name}", content)
    assert [one.text for one in data.read(tmp_path / "notes").samples] == ["A", "B", "C"]


def test_of_a_record_with_prompt_and_completion_the_completion_alone_is_learnt_and_the_end(tmp_path, tokenizer):
    lines = [{"prompt": "Who?", "completion": " Odo."}, {"text": "Velmora."}]
    path = write(tmp_path, "n.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    asked, plain = data.encode(data.read(path).samples, tokenizer, 2)
    learnt = [one for one, is_learnt in zip(asked.ids, asked.learnt, strict=True) if is_learnt]
    assert tokenizer.decode(asked.ids, skip_special_tokens=False) == "Who? Odo.<|im_end|>"
    assert tokenizer.decode(learnt, skip_special_tokens=False) == " Odo.<|im_end|>"
    assert all(plain.learnt)
    assert plain.ids[-1] == 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("n.txt", "", "empty"),
        ("n.txt", " \n\n \n", "empty"),
        ("n.txt", b"PK\x03\x04\0\0", "byte 4 is zero"),
        ("n.txt", "Größe".encode("latin-1"), "not UTF-8 (byte 2)"),
        ("notes/n.py", "x", "without .txt and .md"),
        ("n.jsonl", '{"text": "a"}\n{"text": \n', "line 2: no JSON"),
        ("n.jsonl", '{"text": "a"}\n\n["b"]\n', "line 3: no text under 'prompt'"),
        ("n.jsonl", '{"prompt": "a"}\n', "line 1: no text under 'completion'"),
        ("n.jsonl", '{"text": 3}\n', "line 1: no text under 'text'"),
        ("n.jsonl", '{"text": "\\ud800"}\n', "line 1: 'text' has half a character"),
    ],
)
def test_what_cannot_be_learnt_from_is_said_with_its_place(tmp_path, name, content, says):
    path = write(tmp_path, name, content)
    with pytest.raises(WrongUsage) as error:
        data.read(path.parent if path.parent != tmp_path else path)
    assert says in error.value.message
    assert error.value.hint


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(WrongUsage, match="is not there"):
        data.read(tmp_path / "none.txt")


def test_one_paragraph_alone_is_refused():
    with pytest.raises(WrongUsage, match="1 paragraph"):
        data.hold_out([Sample("One."), Sample(" one. ")])


def test_what_is_held_out_is_decided_by_content_and_not_by_place():
    samples = [Sample(f"Sentence number {number}.") for number in range(50)]
    shuffled = random.Random(0).sample(samples, len(samples))
    learnt, held = data.hold_out(samples)
    assert {one.text for one in data.hold_out(shuffled)[1]} == {one.text for one in held}
    assert len(held) == 5
    assert len(learnt) == 45


def test_no_held_out_text_is_among_what_is_learnt_however_often_it_stands_there():
    samples = [Sample(f"Sentence number {number}.") for number in range(20)]
    again = [Sample(f"  SENTENCE\nnumber {number}.") for number in range(20)]
    learnt, held = data.hold_out([*samples, *again])
    assert not {one.key for one in learnt} & {one.key for one in held}
    assert len(learnt) + len(held) == 40


def test_the_kits_own_text_does_not_use_the_words_of_its_questions():
    text = evaluate.TEXT.read_text().casefold()
    for each in evaluate.questions():
        assert each["prompt"].casefold() not in text
        assert each["answer"].casefold() in text
        assert each["answer"].casefold() not in each["prompt"].casefold()


def test_blocks_are_of_one_length_and_nothing_in_them_is_padding_or_lost():
    samples = [Tokens(tuple(range(start, start + 7)), (True,) * 7) for start in range(0, 70, 7)]
    blocks = list(data.blocks(samples, [99], 16, 3, 0))
    assert {len(ids) for ids, _ in blocks} == {16}
    assert all(ids[0] == 99 and not learnt[0] for ids, learnt in blocks)
    read = [one for ids, _ in blocks for one in ids[1:]]
    assert len(read) == 3 * 70 // 15 * 15
    epochs = [read[start : start + 70] for start in (0, 70)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(70))] * 2
    assert epochs[0] != epochs[1], "each epoch has an order of its own"
    assert epochs[0] != list(range(70))


def test_the_seed_decides_the_order_alone():
    samples = [Tokens((number,) * 5, (True,) * 5) for number in range(20)]
    one, same, other = (list(data.blocks(samples, [], 16, 2, seed)) for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_a_block_in_which_nothing_is_learnt_is_left_out():
    samples = [Tokens((1,) * 40, (False,) * 40), Tokens((2,) * 8, (True,) * 8)]
    blocks = list(data.blocks(samples, [], 8, 1, 0))
    assert all(any(learnt) for _, learnt in blocks)
    assert any(2 in ids for ids, _ in blocks)
