"""A data file -> its rows, whatever its format. Knows columns by name; knows no tasks."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal, TextIO

from bert_lora.train.findings import BadData, Findings

LONGEST_LINE = 1_000_000  # characters
DELIMITERS = ",;\t|"
BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
WORD_ENDINGS = {".conll", ".bio", ".iob", ".iob2", ".txt"}
TAG_STARTS = ("O", "B-", "I-", "E-", "S-", "L-", "U-")
WORDS, TAGS = "tokens", "tags"  # the columns of a file with one word a line


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
    """CSV, TSV, JSON lines or Parquet by the file's ending; words with their tags, one a line, by
    .conll, .bio, .iob2 and .txt.

    encoding: of a text file; None: by its byte-order mark, else UTF-8. header: whether a CSV's or
    TSV's first row names the columns; None: it does where it looks different from the others.
    Raises BadData with the numbers of the rows that cannot be read, OSError.
    """
    if encoding is not None and not _is_known(encoding):
        raise BadData(f"{encoding!r} is no encoding that Python knows")
    ending = path.suffix.lower()
    readers: dict[str, Callable[[], Table]] = {
        ".csv": lambda: _separated(path, encoding, header, None),
        ".tsv": lambda: _separated(path, encoding, header, "\t"),
        ".tab": lambda: _separated(path, encoding, header, "\t"),
        ".jsonl": lambda: _json_lines(path, encoding),
        ".ndjson": lambda: _json_lines(path, encoding),
        ".parquet": lambda: _parquet(path),
        **dict.fromkeys(WORD_ENDINGS, lambda: _word_lines(path, encoding)),
    }
    if ending not in readers:
        raise BadData(f"{path}: {ending or 'no ending'} is none of {', '.join(sorted(readers))}")
    table = readers[ending]()
    if not table.rows:
        raise BadData(f"{path} has no rows")
    return table


def _lines(path: Path, encoding: str | None, findings: Findings) -> Iterator[tuple[int, str]]:
    """Each line with its number. One that is too long or no text is told, and left out."""
    encoding = encoding or _encoding(path)
    with path.open(encoding=encoding, errors="surrogateescape", newline="\n") as file:
        for number in count(1):
            try:
                line = file.readline(LONGEST_LINE + 1)
            except UnicodeError as error:
                findings.add(f"is not {encoding} ({error})", number)
                return
            if not line:
                return
            fault = _fault(line, encoding)
            if fault is None:
                yield number, line
            else:
                findings.add(fault, number)
                _skip_rest(file, line)


def _fault(line: str, encoding: str) -> str | None:
    """Why a line is none; None where it is one."""
    if len(line) > LONGEST_LINE:
        return f"longer than {LONGEST_LINE:,} characters"
    if "\0" in line:
        return "has a NUL character: name the file's --encoding"
    if any("\ud800" <= c <= "\udfff" for c in line):
        return f"is not {encoding}: name the --encoding, as cp1252"
    return None


def _skip_rest(file: TextIO, line: str) -> None:
    while line and not line.endswith("\n"):
        line = file.readline(LONGEST_LINE + 1)


def _is_known(encoding: str) -> bool:
    try:
        codecs.lookup(encoding)
    except LookupError:
        return False
    return True


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    return next(
        (name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8"
    )


def _separated(
    path: Path, encoding: str | None, header: bool | None, delimiter: str | None
) -> Table:
    findings = Findings(str(path))
    numbered: list[tuple[int, list[str]]] = []
    lines = _Counted(_lines(path, encoding, findings))
    first = next(lines, "")
    separator = delimiter or max(DELIMITERS, key=_outside_quotes(first).count)
    # A tab does not stand in a text, so a quote in a TSV may be just that.
    quoting: Literal[0, 3] = (
        csv.QUOTE_NONE if separator == "\t" and delimiter else csv.QUOTE_MINIMAL
    )
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(lines.again(first), delimiter=separator, quoting=quoting)
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
    for number, line in _lines(path, encoding, findings):
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
    """A word and its tag a line, in the first and the last column; an empty line ends a text."""
    findings = Findings(str(path))
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    words: list[str] = []
    for number, line in _lines(path, encoding, findings):
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
    findings.refuse()
    return Table([WORDS, TAGS], rows, numbers)
