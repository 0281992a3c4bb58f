"""Which column is the text, which the label, and what is to be learned: named, or by their names
and values. What is taken for granted is said in a sentence.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, get_args

from bert_lora.train.findings import BadData
from bert_lora.train.table import Table

Task = Literal[
    "classify", "multi-label", "regression", "words", "rerank", "embeddings", "similarity"
]  # fmt: skip
TASKS: tuple[Task, ...] = get_args(Task)

FIRST_TEXTS = ("anchor", "query", "question1", "sentence1", "text1", "premise", "question", "text",
    "sentence", "utterance", "message", "review", "comment", "tweet", "sms", "content", "title",
    "document", "input", "body", "description")  # fmt: skip
SECOND_TEXTS = ("positive", "text_pair", "pair", "question2", "sentence2", "text2", "hypothesis",
    "passage", "answer", "document", "response", "text_b")  # fmt: skip
NEGATIVES = ("negative", "hard_negative")
LABELS = ("label_text", "label_name", "label", "labels", "category", "intent", "class", "target",
    "sentiment", "topic", "emotion", "gold_label", "score", "rating", "similarity",
    "similarity_score", "relevance", "relevant", "is_duplicate", "y")  # fmt: skip
WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "labels", "label")
SEPARATORS = "|;,"
MANY = 20  # numbers, from which on they are amounts and no names
SHOWN = 24  # characters of a cell
SAMPLE = 2000  # rows that are looked at


@dataclass(frozen=True)
class Roles:
    """texts: one column; two of a pair; anchor, positive and negative. labels: the label's column;
    several of zeros and ones; none for pairs to embed. separator: between several labels of a cell.
    """

    task: Task
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    separator: str | None
    assumed: tuple[str, ...]


def find_roles(
    table: Table,
    task: Task | None = None,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
) -> Roles:
    """What is named is taken; the rest is found. Raises BadData where it cannot be told."""
    named = [*_listed(text), *_listed(pair), *_listed(label)]
    lacking = [name for name in named if name not in table.columns]
    if lacking:
        raise BadData(f"there is no column {lacking[0]!r}; there are: {', '.join(table.columns)}")
    sample = table.rows[:SAMPLE]
    if task == "words" or (task is None and _is_words(table, sample)):
        words = text or _by_name(table.columns, WORDS)
        tags = label or _by_name([c for c in table.columns if c != words], TAGS)
        if words is None or tags is None:
            raise BadData(
                "words need a column with lists of words (--text) and one with their tags (--label)"
            )
        return _told("words", (words,), (tags,), None, named)
    texts = _texts(table, sample, text, pair, label, task)
    labels = _listed(label) or _labels(table, sample, texts)
    if not labels:
        if len(texts) == 1 or task not in (None, "embeddings"):
            raise _none_looks_like("the label", "--label", table)
        return _told("embeddings", texts, (), None, named)
    if task == "embeddings" and len(texts) > 1:
        if len(texts) > 2 or not _numbers(sample, labels):
            return _told(task, texts, (), None, named)
        task = "similarity"  # pairs with how alike they are
    separator = None if len(labels) > 1 else _separator(sample, labels[0], task)
    found = task or _task(sample, labels, separator)
    return _told(found, texts, labels, separator, named)


def _none_looks_like(what: str, option: str, table: Table) -> BadData:
    first = table.rows[0]
    there = ", ".join(f"{c} ({str(first.get(c))[:SHOWN]!r})" for c in table.columns)
    return BadData(
        f"no column looks like {what}: name it with {option}; the first row has: {there}"
    )


def _listed(names: str | None) -> tuple[str, ...]:
    return () if names is None else tuple(name.strip() for name in names.split(","))


def _told(
    task: Task,
    texts: tuple[str, ...],
    labels: tuple[str, ...],
    separator: str | None,
    named: list[str],
) -> Roles:
    """With a sentence for what was found and not named."""
    assumed = []
    if not set(texts + labels) <= set(named):
        of = f", label: {', '.join(labels[:6])}" if labels else ""
        more = f" and {len(labels) - 6} more" if len(labels) > 6 else ""
        assumed.append(f"text: {', '.join(texts)}{of}{more}")
    if separator is not None:
        assumed.append(f"several labels of a row are separated by {separator!r}")
    return Roles(task, texts, labels, separator, tuple(assumed))


def _by_name(columns: list[str], names: tuple[str, ...]) -> str | None:
    lowered = {column.lower().replace(" ", "_"): column for column in reversed(columns)}
    return next((lowered[name] for name in names if name in lowered), None)


def _is_words(table: Table, sample: list[dict[str, Any]]) -> bool:
    words = _by_name(table.columns, WORDS)
    return words is not None and all(isinstance(row.get(words), list) for row in sample)


def _texts(
    table: Table,
    sample: list[dict[str, Any]],
    text: str | None,
    pair: str | None,
    label: str | None,
    task: Task | None,
) -> tuple[str, ...]:
    free = [c for c in table.columns if c not in _listed(label)]
    first = text or _by_name(free, FIRST_TEXTS) or _longest(free, sample)
    if first is None:
        raise _none_looks_like("text", "--text", table)
    free = [c for c in free if c != first]
    second = pair or _by_name(free, SECOND_TEXTS)
    if second is None or (
        pair is None and text is not None and task not in ("rerank", "embeddings", "similarity")
    ):
        return (first,)
    negative = _by_name([c for c in free if c != second], NEGATIVES)
    return (first, second) if negative is None else (first, second, negative)


def _longest(columns: list[str], sample: list[dict[str, Any]]) -> str | None:
    """The column with the longest values that are mostly no numbers."""
    lengths = {
        column: sum(
            len(row.get(column) or "") for row in sample if isinstance(row.get(column), str)
        )
        for column in columns
    }
    best = max(lengths, key=lambda column: lengths[column], default=None)
    return best if best is not None and lengths[best] else None


def _labels(table: Table, sample: list[dict[str, Any]], texts: tuple[str, ...]) -> tuple[str, ...]:
    rest = [c for c in table.columns if c not in texts and _is_filled(sample, c)]
    named = _by_name(rest, LABELS)
    if named is not None:
        return (named,)
    flags = [
        c for c in rest if all(str(row.get(c)) in ("0", "1", "True", "False") for row in sample)
    ]
    if len(flags) > 1:
        return tuple(flags)
    repeated = [c for c in rest if _distinct(sample, c) <= max(2, len(sample) // 2)]
    if len(texts) > 1 and not flags:
        return ()
    if len(rest) == 1:
        return (rest[0],)
    return (repeated[0],) if len(repeated) == 1 else ()


def _is_filled(sample: list[dict[str, Any]], column: str) -> bool:
    """In at least half of the rows: spreadsheets leave columns of nothing behind."""
    return 2 * sum(row.get(column) not in (None, "") for row in sample) >= len(sample)


def _distinct(sample: list[dict[str, Any]], column: str) -> int:
    return len({str(row.get(column)) for row in sample})


def _separator(sample: list[dict[str, Any]], label: str, task: Task | None) -> str | None:
    """What stands between labels that occur alone as well; None where a cell holds one label."""
    if task not in (None, "multi-label"):
        return None
    cells = [row.get(label) for row in sample]
    texts = [cell for cell in cells if isinstance(cell, str)]
    whole = Counter(texts)
    for mark in SEPARATORS:
        several = [cell for cell in texts if mark in cell]
        pieces = Counter(piece.strip() for cell in texts for piece in cell.split(mark))
        if several and (task == "multi-label" or len(pieces) * 2 < len(whole) + 1):
            return mark
    return None


def _task(sample: list[dict[str, Any]], labels: tuple[str, ...], separator: str | None) -> Task:
    cells = [row.get(labels[0]) for row in sample]
    if len(labels) > 1 or separator is not None or any(isinstance(cell, list) for cell in cells):
        return "multi-label"
    numbers = [_number(cell) for cell in cells if cell not in (None, "")]
    if all(n is not None for n in numbers):
        amounts = {n for n in numbers if n is not None}
        if len(amounts) > MANY or any(n != int(n) for n in amounts):
            return "regression"
    return "classify"


def _numbers(sample: list[dict[str, Any]], labels: tuple[str, ...]) -> bool:
    cells = [row.get(label) for row in sample for label in labels]
    return all(_number(cell) is not None for cell in cells if cell not in (None, ""))


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None
