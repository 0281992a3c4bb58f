"""Words with their tags, one a line or one a row -> one row for each text, with two lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bert_lora.train.findings import Findings

TAG_STARTS = ("O", "B-", "I-", "E-", "S-", "L-", "U-")
WORDS, TAGS = "tokens", "tags"  # the columns that come out
# The columns of a file with one word a row.
ONE_WORD = ("word", "words", "token", "tokens")
ONE_TAG = ("tag", "tags", "ner", "ner_tag", "label", "labels")
WHICH_TEXT = ("sentence_#", "sentence", "sentence_id", "sent_id", "sentence_idx", "doc_id")
Rows = tuple[list[dict[str, Any]], list[int]]


def word_lines(lines: Iterator[tuple[int, str]], findings: Findings) -> Rows:
    """A word and its tag a line, in the first and the last column; an empty line ends a text."""
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    words: list[str] = []
    for number, line in lines:
        cells = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
        if not line.strip():
            words = []
        elif cells[0] == "-DOCSTART-" or line.startswith("# "):
            continue
        elif len(cells) < 2 or not cells[-1].startswith(TAG_STARTS):
            findings.add("is not a word and its tag (O, B-…, I-…)", number)
        else:
            if not words:
                rows.append({WORDS: (words := []), TAGS: []})
                numbers.append(number)
            words.append(cells[0])
            rows[-1][TAGS].append(cells[-1])
    return rows, numbers


def one_word_a_row(columns: Sequence[str]) -> tuple[str, str, str] | None:
    """The columns of the text's number, the word and its tag, where a table has all three."""
    lowered = {column.lower().replace(" ", "_"): column for column in reversed(columns)}
    found = [
        next((lowered[name] for name in names if name in lowered), None)
        for names in (WHICH_TEXT, ONE_WORD, ONE_TAG)
    ]
    which, word, tag = found
    return None if which is None or word is None or tag is None else (which, word, tag)


def gathered(
    rows: Sequence[dict[str, Any]], numbers: Sequence[int], columns: tuple[str, str, str]
) -> Rows:
    """One row for each text. A text's number may stand in its first row alone, as Kaggle has it."""
    which, word, tag = columns
    texts: list[dict[str, Any]] = []
    starts: list[int] = []
    current: Any = None
    for row, number in zip(rows, numbers, strict=True):
        if row[which] not in (None, "", current) or not texts:
            current = row[which]
            texts.append({WORDS: [], TAGS: []})
            starts.append(number)
        texts[-1][WORDS].append(row[word] or "")
        texts[-1][TAGS].append(row[tag] or "")
    return texts, starts
