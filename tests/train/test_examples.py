"""Rows that cannot be learned from are named; what is held back shares no text with the rest."""

from __future__ import annotations

from typing import Any

import pytest

from bert_lora.train.columns import Roles, Task
from bert_lora.train.examples import (
    Example,
    contradictions,
    count_labels,
    overlap,
    read_examples,
    split,
)
from bert_lora.train.findings import BadData
from bert_lora.train.table import Table

GOOD = [{"text": f"text {i}", "label": str(i % 2)} for i in range(20)]


def _read(rows: list[dict[str, Any]], task: Task = "classify") -> list[Example]:
    table = Table(list(rows[0]), rows, list(range(2, len(rows) + 2)))
    return read_examples(table, Roles(task, ("text",), ("label",), None, ()), "data.csv")


@pytest.mark.parametrize(
    ("row", "task", "words"),
    [
        ({"text": "a", "label": ""}, "classify", "label is empty"),
        ({"text": "a", "label": None}, "classify", "label is empty"),
        ({"text": " ", "label": "1"}, "classify", "text is empty"),
        ({"text": "a", "label": ["1"]}, "classify", "label is a list"),
        ({"text": "a", "label": "high"}, "regression", "label is no number"),
        ({"text": "a", "label": "nan"}, "regression", "label is no number"),
        ({"text": "a", "label": "2"}, "rerank", "neither 1 nor 0"),
        ({"text": ["a", "b"], "label": ["O"]}, "words", "one tag for each word"),
    ],
)
def test_a_row_without_text_or_label_is_named(row: dict[str, Any], task: Task, words: str) -> None:
    good = [{"text": ["a"], "label": ["O", "B-X"][i % 2 :][:1]} for i in range(20)]
    with pytest.raises(BadData, match=f"row 22: .*{words}"):
        _read([*(good if task == "words" else GOOD), row], task)


def test_many_rows_with_one_fault_are_one_line() -> None:
    with pytest.raises(BadData) as refused:
        _read([*GOOD, *({"text": "", "label": "1"} for _ in range(40))])
    assert "rows 22, 23, 24, 25, 26 and 35 more: text is empty" in str(refused.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": f"t{i}", "label": "a"} for i in range(20)], "one label only"),
        (GOOD[:4], "10 are the least"),
        ([{"text": f"t{i}", "label": f"free text {i}"} for i in range(20)], "is it the label"),
    ],
)
def test_a_file_that_nothing_can_be_learned_from_is_refused(
    rows: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(BadData, match=words):
        _read(rows)


def test_a_text_with_two_labels_is_told_by_its_rows() -> None:
    examples = _read([*GOOD, {"text": "Text  3", "label": "0"}])
    assert contradictions(examples) == [(5, 22)]


def test_equal_texts_are_on_one_side_and_every_label_on_both() -> None:
    rows = [{"text": f"Text {i // 2}", "label": "ab"[(i // 2) % 2]} for i in range(200)]
    train, dev = split(_read(rows), 0.2, seed=3)
    assert not overlap(train, dev)
    assert sorted(e.row for e in [*train, *dev]) == list(range(2, 202))
    assert count_labels(dev) == {"a": 20, "b": 20}


def test_a_label_with_one_text_is_trained_on() -> None:
    alone = [{"text": f"alone {i}", "label": f"rare {i}"} for i in range(8)]
    train, _ = split(_read([*GOOD, *alone]), 0.5, seed=0)
    assert all(f"rare {i}" in count_labels(train) for i in range(8))


def test_labels_of_few_texts_give_their_share_together() -> None:
    rows = [{"text": f"text {i}", "label": f"label {i % 30}"} for i in range(90)]
    _, dev = split(_read(rows), 0.1, seed=0)
    assert 8 <= len(dev) <= 10


def test_the_split_is_the_same_again_and_another_with_another_seed() -> None:
    examples = _read([{"text": f"text {i}", "label": str(i % 2)} for i in range(100)])
    assert split(examples, 0.2, 1) == split(examples, 0.2, 1) != split(examples, 0.2, 2)
