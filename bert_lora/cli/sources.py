"""Texts from a file or stdin, one after the other: lines, CSV, TSV, JSONL, Parquet.

A row that is none stops the command and is named. The n-th text is the n-th row of the output.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import orjson

from bert_lora.cli.connection import BadInput, WrongUse

Format = Literal["lines", "csv", "tsv", "jsonl", "parquet"]
ENDINGS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
DEFAULT_COLUMN = "text"
LONGEST_FIELD = 16 << 20
PARQUET_ROWS = 1024


@dataclass(frozen=True)
class Source:
    """path: None is stdin. column: of CSV, TSV and Parquet, or a JSON object's member; None: text,
    or the only one.
    """

    path: Path | None
    form: Format
    column: str | None

    @property
    def name(self) -> str:
        """For messages."""
        return "stdin" if self.path is None else str(self.path)

    def place(self, index: int) -> str:
        """Where text `index` stands, counted from 1."""
        return f"{self.name}, {'line' if self.form in ('lines', 'jsonl') else 'row'} {index + 1}"

    def texts(self) -> Iterator[str]:
        """Raises BadInput, WrongUse."""
        for index, value in enumerate(READERS[self.form](self)):
            if isinstance(value, str) and value:
                yield value
            else:
                what = "is empty" if value in ("", None) else f"is no text: {value!r:.60}"
                raise BadInput(f"{self.place(index)} {what}")

    def count(self) -> int | None:
        """How many texts there are, where that is quickly known; None for stdin."""
        if self.path is None:
            return None
        if self.form == "parquet":
            rows: int = parquet().ParquetFile(self.path).metadata.num_rows
            return rows
        lines, last = 0, b""
        with self.path.open("rb") as file:  # of a CSV with line breaks in its fields too many
            for block in iter(lambda: file.read(1 << 20), b""):
                lines, last = lines + block.count(b"\n"), block[-1:]
        return lines + (last not in (b"\n", b"")) - (self.form in ("csv", "tsv"))

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Its bytes."""
        if self.path is None:
            yield sys.stdin.buffer
        else:
            with self.path.open("rb") as file:
                yield file


def source_of(path: Path, form: Format | None, column: str | None) -> Source:
    """path: `-` is stdin. form: None: by the ending, or lines. Raises WrongUse."""
    stdin = str(path) == "-"
    form = form or ENDINGS.get(path.suffix.lower(), "lines")
    if form == "lines" and column is not None:
        raise WrongUse("--column is for CSV, TSV, JSONL and Parquet: say which with --format")
    if form == "parquet" and stdin:
        raise WrongUse("Parquet is read from a file, not from stdin")
    return Source(None if stdin else path, form, column)


def _decoded(source: Source) -> Iterator[str]:
    """Its lines with their ends. Raises BadInput."""
    with source.opened() as file:
        for index, line in enumerate(file):
            try:
                yield line.decode("utf-8-sig" if index == 0 else "utf-8")
            except UnicodeDecodeError as error:
                where = f"{source.name}, line {index + 1}"
                raise BadInput(f"{where} is not UTF-8: {error.reason}") from None


def _lines(source: Source) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in _decoded(source))


def _jsonl(source: Source) -> Iterator[Any]:
    """Objects, of which one member is the text, or bare strings."""
    field = source.column or DEFAULT_COLUMN
    for index, line in enumerate(_lines(source)):
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise BadInput(f"{source.place(index)} is not JSON: {error}") from None
        if isinstance(value, dict):
            if field not in value:
                members = ", ".join(value) or "none"
                raise BadInput(f"{source.place(index)} has no member {field!r}, but {members}")
            value = value[field]
        yield value


def _separated(source: Source, separator: str) -> Iterator[Any]:
    """The first row names the columns."""
    csv.field_size_limit(LONGEST_FIELD)
    rows = csv.reader(_decoded(source), delimiter=separator, strict=True)
    try:
        names = next(rows, [])
        place = names.index(_column(source, names))
        for row in rows:
            yield row[place] if len(row) > place else None
    except csv.Error as error:
        raise BadInput(f"{source.name}, line {rows.line_num}: {error}") from None


def _column(source: Source, names: list[str]) -> str:
    """The one that holds the texts. Raises WrongUse."""
    listed = ", ".join(names) or "none"
    if source.column is not None:
        if source.column not in names:
            raise WrongUse(f"{source.name} has no column {source.column!r}; it has {listed}")
        return source.column
    if DEFAULT_COLUMN in names:
        return DEFAULT_COLUMN
    if len(names) != 1:
        raise WrongUse(
            f"say with --column which of {source.name}'s columns has the texts: {listed}"
        )
    return names[0]


def _parquet_rows(source: Source) -> Iterator[Any]:
    file = parquet().ParquetFile(source.path)
    column = _column(source, file.schema_arrow.names)
    for batch in file.iter_batches(PARQUET_ROWS, columns=[column]):
        yield from batch.column(0).to_pylist()


def parquet() -> Any:
    """Raises WrongUse where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise WrongUse("Parquet needs pyarrow: pip install 'bert-lora-server[parquet]'") from None
    return pyarrow.parquet


READERS: dict[Format, Callable[[Source], Iterator[Any]]] = {
    "lines": _lines,
    "csv": lambda source: _separated(source, ","),
    "tsv": lambda source: _separated(source, "\t"),
    "jsonl": _jsonl,
    "parquet": _parquet_rows,
}
