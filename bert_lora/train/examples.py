"""Rows -> examples, each checked; and the split that is held back to measure."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bert_lora.train.columns import Roles
from bert_lora.train.findings import Findings
from bert_lora.train.table import Table

Gold = str | float | tuple[str, ...] | None
RELEVANT = "relevant"  # the one label of a reranker
YES, NO = {"1", "1.0", "true", "yes", RELEVANT}, {"0", "0.0", "false", "no", "irrelevant"}
FEWEST = 10  # rows, below which nothing can be measured


@dataclass(frozen=True)
class Example:
    """row: where it stands in its file. texts: one, two of a pair, three of a triplet; of words the
    words. gold: the label; the amount; the labels; the words' tags; None: there is none.
    """

    row: int
    texts: tuple[str, ...]
    gold: Gold


def read_examples(table: Table, roles: Roles, source: str) -> list[Example]:
    """Every row as an example. Raises BadData that names each row that has no text or label."""
    findings = Findings(source)
    read = {
        "classify": _one_label,
        "multi-label": _labels,
        "regression": _amount,
        "rerank": _relevance,
        "words": _tags,
        "embeddings": _one_label if roles.labels else _nothing,
        "similarity": _amount,
    }[roles.task]
    examples = []
    for number, row in zip(table.numbers, table.rows, strict=True):
        texts = _words(row, roles) if roles.task == "words" else _texts(row, roles)
        problem = _no_text(texts, roles)
        if problem is not None:
            findings.add(problem, number)
            continue
        try:
            examples.append(Example(number, texts, read(row, roles, texts)))
        except ValueError as error:
            findings.add(str(error), number)
    _whole(examples, roles, findings)
    findings.refuse()
    return examples


def _texts(row: dict[str, Any], roles: Roles) -> tuple[str, ...]:
    return tuple(str(row.get(c) if row.get(c) is not None else "").strip() for c in roles.texts)


def _words(row: dict[str, Any], roles: Roles) -> tuple[str, ...]:
    words = row.get(roles.texts[0])
    words = words.split() if isinstance(words, str) else words
    return tuple(map(str, words)) if isinstance(words, list) else ()


def _no_text(texts: tuple[str, ...], roles: Roles) -> str | None:
    if roles.task == "words":
        return None if texts and all(w.strip() for w in texts) else "has no words"
    empty = next((c for c, text in zip(roles.texts, texts, strict=True) if not text), None)
    return None if empty is None else f"{empty} is empty"


def _cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    text = "" if value is None else str(value).strip()
    if not text:
        raise ValueError(f"{column} is empty")
    return text


def _one_label(row: dict[str, Any], roles: Roles, _: tuple[str, ...]) -> Gold:
    if isinstance(row.get(roles.labels[0]), (list, dict)):
        raise ValueError(f"{roles.labels[0]} is a list: --task multi-label reads lists")
    return _cell(row, roles.labels[0])


def _labels(row: dict[str, Any], roles: Roles, _: tuple[str, ...]) -> Gold:
    """In the order of the columns or of the cell. None at all is a fine answer."""
    if len(roles.labels) > 1:
        return tuple(c for c in roles.labels if _flag(_cell(row, c), c))
    value = row.get(roles.labels[0])
    if isinstance(value, list):
        return tuple(dict.fromkeys(str(v) for v in value))
    pieces = str(value or "").split(roles.separator) if roles.separator else [str(value or "")]
    return tuple(dict.fromkeys(piece.strip() for piece in pieces if piece.strip()))


def _amount(row: dict[str, Any], roles: Roles, _: tuple[str, ...]) -> Gold:
    cell = _cell(row, roles.labels[0])
    try:
        amount = float(cell)
    except ValueError:
        amount = math.nan
    if not math.isfinite(amount):
        raise ValueError(f"{roles.labels[0]} is no number")
    return amount


def _relevance(row: dict[str, Any], roles: Roles, _: tuple[str, ...]) -> Gold:
    return RELEVANT if _flag(_cell(row, roles.labels[0]), roles.labels[0]) else "other"


def _flag(cell: str, column: str) -> bool:
    if cell.lower() in YES | NO:
        return cell.lower() in YES
    raise ValueError(f"{column} is neither 1 nor 0")


def _tags(row: dict[str, Any], roles: Roles, words: tuple[str, ...]) -> Gold:
    tags = row.get(roles.labels[0])
    tags = tags.split() if isinstance(tags, str) else tags
    if not isinstance(tags, list) or len(tags) != len(words):
        raise ValueError(f"{roles.labels[0]} has not one tag for each word")
    return tuple(map(str, tags))


def _nothing(row: dict[str, Any], roles: Roles, _: tuple[str, ...]) -> Gold:
    return None


def _whole(examples: Sequence[Example], roles: Roles, findings: Findings) -> None:
    """What is wrong with all of them together."""
    if len(examples) < FEWEST:
        findings.add(f"there are {len(examples)} usable rows; {FEWEST} are the least")
        return
    if roles.task == "words" and all(tag.isdigit() for tag in count_labels(examples)):
        findings.add(
            "the tags are numbers, which do not say what is O and where a name begins: write them "
            "as O, B-PER, I-PER"
        )
    if roles.task == "similarity" and len(roles.texts) < 2:
        findings.add("similarity needs two texts a row: name them with --text and --pair")
    if roles.task in ("regression", "similarity") and len({e.gold for e in examples}) < 2:
        findings.add("every row has the same amount")
    if roles.task not in ("classify", "multi-label", "rerank", "words") and not (
        roles.task == "embeddings" and roles.labels
    ):
        return
    counts = count_labels(examples)
    if len(counts) < (1 if roles.task == "multi-label" else 2):
        findings.add(
            f"there is one label only ({next(iter(counts), 'none at all')}): nothing to learn"
        )
    if roles.task in ("classify", "embeddings") and len(counts) > len(examples) // 2:
        findings.add(
            f"{len(counts)} labels for {len(examples)} rows: is it the label? "
            "name another --label, or say --task regression"
        )


def labels_of(example: Example) -> tuple[str, ...]:
    """Each label that the example has; of words each tag."""
    gold = example.gold
    return gold if isinstance(gold, tuple) else () if gold is None else (str(gold),)


def count_labels(examples: Iterable[Example]) -> Counter[str]:
    """How often each label occurs."""
    return Counter(label for e in examples for label in labels_of(e))


def contradictions(examples: Sequence[Example]) -> list[tuple[int, int]]:
    """The rows of equal texts with other labels, in pairs."""
    seen: dict[tuple[str, ...], Example] = {}
    found = []
    for e in examples:
        first = seen.setdefault(_same(e), e)
        if first.gold != e.gold:
            found.append((first.row, e.row))
    return found


def overlap(examples: Sequence[Example], others: Sequence[Example]) -> list[int]:
    """The rows of others whose text stands among the examples too."""
    known = {_same(e) for e in examples}
    return [e.row for e in others if _same(e) in known]


def split(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(to train on, to measure on), each label in both by its share. Equal texts stay together.

    A label's only text is trained on: nothing could be learned of it otherwise.
    """
    groups: dict[tuple[str, ...], list[Example]] = defaultdict(list)
    for e in examples:
        groups[_same(e)].append(e)
    by_label: dict[Any, list[list[Example]]] = defaultdict(list)
    for group in groups.values():
        by_label[_stratum(group[0])].append(group)
    rng = random.Random(seed)
    train: list[Example] = []
    dev: list[Example] = []
    left = 0.0  # of a row, owed to the development split by the labels so far
    for label in sorted(by_label, key=str):
        gathered = by_label[label]
        rng.shuffle(gathered)
        owed = share * len(gathered) + left
        held = min(round(owed), len(gathered) - 1)
        left = owed - held
        dev += [e for group in gathered[:held] for e in group]
        train += [e for group in gathered[held:] for e in group]
    return train, dev


def _same(example: Example) -> tuple[str, ...]:
    return tuple(" ".join(text.lower().split()) for text in example.texts)


def _stratum(example: Example) -> Any:
    """What both splits get their share of. Of amounts and words: nothing."""
    return example.gold if isinstance(example.gold, str) else None
