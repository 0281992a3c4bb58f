"""Data sets as they are handed around: which column is what, and what is to be learned."""

from __future__ import annotations

from typing import Any

import pytest

from bert_lora.train.columns import find_roles
from bert_lora.train.findings import BadData
from bert_lora.train.table import Table

LONG = "a text of some words, as people write them"


def _table(*rows: dict[str, Any]) -> Table:
    many = [dict(row) for row in rows for _ in range(6)]
    return Table(list(rows[0]), many, list(range(2, len(many) + 2)))


@pytest.mark.parametrize(
    ("rows", "task", "texts", "labels"),
    [
        (
            [{"text": LONG, "category": "a"}, {"text": LONG, "category": "b"}],
            "classify",
            ("text",),
            ("category",),
        ),
        (
            [{"label-coarse": 0, "question": LONG}, {"label-coarse": 1, "question": LONG}],
            "classify",
            ("question",),
            ("label-coarse",),
        ),
        ([{"v1": "ham", "v2": LONG}, {"v1": "spam", "v2": LONG}], "classify", ("v2",), ("v1",)),
        (
            [
                {"v1": "ham", "v2": LONG, "3": "", "4": ""},
                {"v1": "spam", "v2": LONG, "3": "x", "4": ""},
            ]
            * 3
            + [{"v1": "ham", "v2": LONG, "3": "", "4": ""}],
            "classify",
            ("v2",),
            ("v1",),
        ),
        ([{"2": LONG, "1": "HUM"}, {"2": LONG, "1": "LOC"}], "classify", ("2",), ("1",)),
        (
            [{"评论": LONG, "label": 1}, {"评论": LONG, "label": 0}],
            "classify",
            ("评论",),
            ("label",),
        ),
        (
            [{"id": i, "text": LONG, "label": str(i % 2)} for i in range(9)],
            "classify",
            ("text",),
            ("label",),
        ),
        (
            [{"premise": LONG, "hypothesis": LONG, "label": i % 3} for i in range(3)],
            "classify",
            ("premise", "hypothesis"),
            ("label",),
        ),
        (
            [{"sentence1": LONG, "sentence2": LONG, "score": i / 3} for i in range(9)],
            "regression",
            ("sentence1", "sentence2"),
            ("score",),
        ),
        ([{"text": LONG, "score": i} for i in range(40)], "regression", ("text",), ("score",)),
        (
            [{"text": LONG, "labels": ["a", "b"]}, {"text": LONG, "labels": []}],
            "multi-label",
            ("text",),
            ("labels",),
        ),
        (
            [
                {"comment": LONG, "toxic": "1", "threat": "0"},
                {"comment": LONG, "toxic": "0", "threat": "0"},
            ],
            "multi-label",
            ("comment",),
            ("toxic", "threat"),
        ),
        (
            [{"text": LONG, "labels": s} for s in ("a|b", "b|c", "a|c", "a", "c|a", "b|a")],
            "multi-label",
            ("text",),
            ("labels",),
        ),
        ([{"anchor": LONG, "positive": LONG}], "embeddings", ("anchor", "positive"), ()),
        (
            [{"anchor": LONG, "positive": LONG, "negative": LONG}],
            "embeddings",
            ("anchor", "positive", "negative"),
            (),
        ),
        ([{"tokens": ["EU"], "ner_tags": ["B-ORG"]}], "words", ("tokens",), ("ner_tags",)),
    ],
)
def test_the_columns_and_the_task_are_found(
    rows: list[dict[str, Any]], task: str, texts: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    roles = find_roles(_table(*rows))
    assert (roles.task, roles.texts, roles.labels) == (task, texts, labels)
    assert roles.assumed


def test_what_is_named_is_taken_and_nothing_is_assumed() -> None:
    table = _table({"title": LONG, "text": LONG, "a": "x", "b": "y"})
    roles = find_roles(table, text="title", label="b")
    assert (roles.texts, roles.labels, roles.assumed) == (("title",), ("b",), ())


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"label": "intent"}, "'intent'"),
        ({}, "--label"),
        ({"text": "body", "label": "a"}, "'body'"),
    ],
)
def test_a_column_that_is_not_there_or_not_plain_is_asked_for(
    named: dict[str, str], words: str
) -> None:
    table = _table(*({"text": LONG, "a": str(i), "b": str(i)} for i in range(20)))
    with pytest.raises(BadData, match=words):
        find_roles(table, **named)  # type: ignore[arg-type]


def test_a_comma_within_a_label_does_not_make_it_two() -> None:
    labels = ["Sports, outdoors", "Books, music", "Home, garden"]
    table = _table(*({"text": LONG, "label": label} for label in labels))
    assert find_roles(table).task == "classify"


def test_pairs_with_a_number_are_vectors_that_keep_its_order_and_no_labels() -> None:
    rows = [{"sentence1": LONG, "sentence2": LONG, "score": i / 3} for i in range(9)]
    roles = find_roles(_table(*rows), "embeddings")
    assert (roles.task, roles.labels) == ("similarity", ("score",))
    named = [{"anchor": LONG, "positive": LONG, "topic": f"t{i % 2}"} for i in range(9)]
    roles = find_roles(_table(*named), "embeddings")
    assert (roles.task, roles.labels) == ("embeddings", ())
