"""A data file -> its rows, whatever its format. Knows columns by name; knows no tasks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from bert_lora.train.cells import with_lists
from bert_lora.train.findings import BadData, Findings
from bert_lora.train.lines import LONGEST_LINE, is_encoding, read_lines
from bert_lora.train.word_rows import (
    TAG_STARTS,
    TAGS,
    WORDS,
    gathered,
    one_word_a_row,
    word_lines,
)

DELIMITERS = ",;\t|"
WORD_ENDINGS = {".conll", ".bio", ".iob", ".iob2", ".txt"}
LABEL_FIRST = ".label"  # TREC's and fastText's: a label, a space, and the text
GUESSED_BY = 200  # lines, where the ending tells nothing


@dataclass(frozen=True)
class Table:
    """rows[i]: its values by column. numbers[i]: the line that it starts at, or in a Parquet file
    its place, from 1. assumed: what the file did not say, in sentences.
    """

    columns: list[str]
    rows: list[dict[str, Any]]
    numbers: list[int]
    assumed: list[str] = field(default_factory=list)


def read_table(path: Path, encoding: str | None = None, header: bool | None = None) -> Table:
    """CSV, TSV, JSON, JSON lines, Parquet, or words with their tags, one a line; by the file's
    ending, and where that says nothing by its first lines.

    encoding: of a text file; None: by its byte-order mark, else UTF-8. header: whether a CSV's or
    TSV's first row names the columns; None: it does where it looks different from the others.
    Raises BadData with the numbers of the rows that cannot be read, OSError.
    """
    if encoding is not None and not is_encoding(encoding):
        raise BadData(f"{encoding!r} is no encoding that Python knows")
    readers: dict[str, Callable[[], Table]] = {
        ".csv": lambda: _separated(path, encoding, header, None),
        ".tsv": lambda: _separated(path, encoding, header, "\t"),
        ".tab": lambda: _separated(path, encoding, header, "\t"),
        ".json": lambda: _json(path, encoding),
        ".jsonl": lambda: _json_lines(path, encoding),
        ".ndjson": lambda: _json_lines(path, encoding),
        ".parquet": lambda: _parquet(path),
        LABEL_FIRST: lambda: _label_first(path, encoding),
        **dict.fromkeys(WORD_ENDINGS, lambda: _word_lines(path, encoding)),
    }
    ending, assumed = path.suffix.lower(), []
    if ending not in readers or ending == ".txt":
        _refuse_binary(path)
        ending = _guess(path, encoding)
        assumed = [f"its ending says no format: it is read as {ending.removeprefix('.')}"]
    table = readers[ending]()
    if not table.rows:
        raise BadData(f"{path} has no rows")
    assumed += with_lists(table.rows, table.columns)
    one_word = one_word_a_row(table.columns)
    if one_word is not None and not isinstance(table.rows[0][one_word[1]], list):
        rows, numbers = gathered(table.rows, table.numbers, one_word)
        assumed.append(f"one word a row: {one_word[0]} tells which text it belongs to")
        table = Table([WORDS, TAGS], rows, numbers, table.assumed)
    return replace(table, assumed=[*assumed, *table.assumed])


def _refuse_binary(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(4) in (b"PK\3\4", b"\xd0\xcf\x11\xe0", b"\x1f\x8b\x08\0", b"\x1f\x8b\x08\x08"):
            raise BadData(f"{path} is a spreadsheet or an archive: save it as CSV, or unpack it")


def _guess(path: Path, encoding: str | None) -> str:
    """The ending that the first lines would have. What is no text is told by the reader."""
    lines = [
        line.rstrip("\r\n")
        for _, line in islice(read_lines(path, encoding, Findings(str(path))), GUESSED_BY)
    ]
    full = [line for line in lines if line.strip()]
    last = [line.split()[-1] for line in full]
    if full and all(line.lstrip().startswith("{") for line in full):
        return ".jsonl"
    if len(full) < len(lines) and all(word.startswith(TAG_STARTS) for word in last):
        return ".conll"
    if all("\t" in line for line in full):
        return ".tsv"
    firsts = {line.split()[0] for line in full}
    if all(":" in first or first.startswith("__label__") for first in firsts):
        return LABEL_FIRST
    return ".csv"


def _separated(
    path: Path, encoding: str | None, header: bool | None, delimiter: str | None
) -> Table:
    findings = Findings(str(path))
    numbered: list[tuple[int, list[str]]] = []
    lines = _Counted(read_lines(path, encoding, findings))
    first = next(lines, "")
    separator = delimiter or max(DELIMITERS, key=_outside_quotes(first).count)
    # A tab does not stand in a text, so a quote in a TSV is just that. Elsewhere an open quote must
    # not take the next rows in: strict.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(lines.again(first), delimiter=separator, quoting=quoting, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                numbered.append((lines.start(), [_unquoted(c, quoting) for c in row]))
            lines.row_ends()
    except csv.Error as error:
        findings.add(f"{error}: is a quote left open?", lines.start())
    assumed = [] if separator in (",", delimiter) else [f"columns are separated by {separator!r}"]
    if header is None:
        header = _has_header([row for _, row in numbered])
        if not header:
            assumed.append("the first row is data: columns are named by their places, from 1")
    width = len(numbered[0][1]) if numbered else 0
    names = numbered[0][1] if header and numbered else [""] * width
    columns = [name.strip() or str(i + 1) for i, name in enumerate(names)]
    if len(set(columns)) < len(columns):
        findings.add("two columns have one name", numbered[0][0])
    rows = numbered[1:] if header else numbered
    for number, row in rows:
        if len(row) != width:
            findings.add(f"another number of columns than {width}", number)
    findings.refuse()
    values = [dict(zip(columns, row, strict=True)) for _, row in rows]
    return Table(columns, values, [number for number, _ in rows], assumed)


class _Counted:
    """Lines for csv.reader, which knows where the row began that it gives."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self._first: str | None = None
        self._begun: int | None = None
        self._number = 0

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> str:
        if self._first is not None:
            line, self._first = self._first, None
        else:
            self._number, line = next(self._lines)
        self._begun = self._begun or self._number
        return line

    def again(self, first: str) -> _Counted:
        """Give this line once more."""
        self._first, self._begun = first or None, None
        return self

    def start(self) -> int:
        """The line at which the present row began."""
        return self._begun or self._number

    def row_ends(self) -> None:
        """The next line begins a row."""
        self._begun = None


def _outside_quotes(line: str) -> str:
    return "".join(line.split('"')[::2])


def _unquoted(cell: str, quoting: int) -> str:
    if quoting == csv.QUOTE_NONE and len(cell) > 1 and cell[0] == cell[-1] == '"':
        return cell[1:-1].replace('""', '"')
    return cell


def _has_header(rows: list[list[str]]) -> bool:
    """Names are short, differ, are no numbers, and do not occur again below themselves."""
    if len(rows) < 2:
        return True
    first, rest = rows[0], rows[1:1000]
    names = [name for name in first if name.strip()]
    if len(set(names)) < len(names):
        return False
    below = [{row[i] for row in rest if i < len(row)} for i in range(len(first))]
    return not any(
        _is_number(name) or len(name.split()) > 4 or name in values
        for name, values in zip(first, below, strict=True)
        if name.strip()
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _json_lines(path: Path, encoding: str | None) -> Table:
    findings = Findings(str(path))
    rows, numbers = [], []
    columns: dict[str, None] = {}
    for number, line in read_lines(path, encoding, findings):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            findings.add("is not JSON", number)
            continue
        if not isinstance(row, dict):
            findings.add("is not a JSON object", number)
            continue
        columns |= dict.fromkeys(row)
        rows.append(row)
        numbers.append(number)
    findings.refuse()
    return Table(list(columns), rows, numbers)


def _json(path: Path, encoding: str | None) -> Table:
    """A list of objects, or of JSON lines all the same. Rows are numbered by their places."""
    try:
        rows = json.loads(path.read_text(encoding or "utf-8-sig"))
    except UnicodeError as error:
        raise BadData(f"{path}: {error}: name its --encoding") from None
    except (ValueError, RecursionError):
        return _json_lines(path, encoding)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadData(f"{path} is no list of objects")
    columns = dict.fromkeys(column for row in rows for column in row)
    return Table(list(columns), rows, list(range(1, len(rows) + 1)))


def _label_first(path: Path, encoding: str | None) -> Table:
    """A label, a space, and the text."""
    findings = Findings(str(path))
    rows, numbers = [], []
    for number, line in read_lines(path, encoding, findings):
        label, _, text = line.strip().partition(" ")
        if label:
            rows.append({"label": label.removeprefix("__label__"), "text": text.strip()})
            numbers.append(number)
    findings.refuse()
    return Table(["label", "text"], rows, numbers)


def _parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BadData(f"{path}: Parquet needs pip install 'bert-lora-server[train]'") from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise BadData(f"{path} is no Parquet file: {error}") from None
    return Table(table.column_names, table.to_pylist(), list(range(1, table.num_rows + 1)))


def _word_lines(path: Path, encoding: str | None) -> Table:
    findings = Findings(str(path))
    rows, numbers = word_lines(read_lines(path, encoding, findings), findings)
    findings.refuse()
    return Table([WORDS, TAGS], rows, numbers)
