"""What came of a training: all that the report, the card and the terminal show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bert_lora.train.examples import Example, labels_of
from bert_lora.train.objectives.objective import Objective, Score
from bert_lora.train.objectives.words import spans

MOST_ERRORS = 20
MOST_SHOWN_LABELS = 200  # of a confusion matrix


@dataclass(frozen=True)
class LabelRow:
    """One label among the examples held back. count: how often it is the right one."""

    label: str
    precision: float
    recall: float
    f1: float
    count: int


@dataclass(frozen=True)
class Mistake:
    """row: in the file. sure: of what was said, from 0 to 1; of an amount how far it is off."""

    row: int
    text: str
    gold: str
    said: str
    sure: float


@dataclass(frozen=True)
class Confusion:
    """counts[i][j]: examples of labels[i] that were taken for labels[j]."""

    labels: list[str]
    counts: list[list[int]]


@dataclass
class Outcome:
    """facts: name -> value, for people. scores: of the examples held back; test_scores: of --test.
    neighbours: what 10 nearest neighbours get right with the adapter and by the base alone.
    """

    name: str
    facts: dict[str, str]
    scores: list[Score]
    test_scores: list[Score]
    history: list[dict[str, float]]
    labels: list[LabelRow]
    confusion: Confusion | None
    mistakes: list[Mistake]
    neighbours: tuple[float, float] | None
    layers: str = ""
    certificate: str = ""
    notes: list[str] = field(default_factory=list)


def label_rows(
    objective: Objective, predictions: Sequence[Any], examples: Sequence[Example], words: bool
) -> list[LabelRow]:
    """Each label's precision and recall; of words each kind of span's."""
    right: Counter[str] = Counter()
    said: Counter[str] = Counter()
    true: Counter[str] = Counter()
    for prediction, example in zip(predictions, examples, strict=True):
        own, there = (
            (_kinds(prediction), _kinds(labels_of(example)))
            if words
            else (_told(objective, prediction), {(label, None) for label in labels_of(example)})
        )
        right.update(label for label, _ in own & there)
        said.update(label for label, _ in own)
        true.update(label for label, _ in there)
    return [
        LabelRow(
            label,
            right[label] / max(1, said[label]),
            right[label] / max(1, true[label]),
            2 * right[label] / max(1, said[label] + true[label]),
            true[label],
        )
        for label in sorted(set(said) | set(true), key=lambda name: (-true[name], name))
    ]


def _kinds(tags: Sequence[str]) -> set[tuple[str, Any]]:
    return {(kind, (start, end)) for start, end, kind in spans(tags)}


def _told(objective: Objective, prediction: Any) -> set[tuple[str, Any]]:
    words = objective.label_of(prediction)
    several = [label for label in words.split(", ") if label in objective.index]
    names = [words] if words in objective.index or not several else several
    return {(name, None) for name in names if name}


def confusion(
    objective: Objective, predictions: Sequence[Any], examples: Sequence[Example]
) -> Confusion | None:
    """Of one label each; None for more labels than a picture shows."""
    labels = objective.labels
    if len(labels) > MOST_SHOWN_LABELS:
        return None
    counts = np.zeros((len(labels), len(labels)), dtype=int)
    for prediction, example in zip(predictions, examples, strict=True):
        gold, said = str(example.gold), objective.label_of(prediction)
        counts[objective.index[gold], objective.index[said]] += 1
    return Confusion(labels, counts.tolist())


def mistakes(
    objective: Objective, predictions: Sequence[Any], examples: Sequence[Example]
) -> list[Mistake]:
    """What was said wrongly, and most surely; of amounts what is farthest off."""
    found = []
    for prediction, example in zip(predictions, examples, strict=True):
        said, gold = objective.label_of(prediction), ", ".join(labels_of(example))
        if isinstance(example.gold, float):
            sure, wrong = abs(float(prediction) - example.gold), True
        elif isinstance(prediction, list):
            tags = labels_of(example)
            sure = sum(a != b for a, b in zip(prediction, tags, strict=True)) / len(tags)
            wrong, gold = sure > 0, " ".join(tags)
        else:
            sure, wrong = float(np.max(prediction)), set(said.split(", ")) != set(gold.split(", "))
        if wrong:
            between = " " if isinstance(prediction, list) else " ⟶ "
            found.append(Mistake(example.row, between.join(example.texts), gold, said, sure))
    return sorted(found, key=lambda m: -m.sure)[:MOST_ERRORS]
