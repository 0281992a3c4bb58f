"""Answers to stdout, or to a file: .npy, JSONL or Parquet. A file is there whole, or not at all."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson

from bert_lora.cli.connection import WrongUse
from bert_lora.cli.part import Part
from bert_lora.cli.sources import parquet

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["npy", "jsonl", "parquet"]
KINDS: dict[str, Kind] = {
    ".npy": "npy",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
HEADER_BYTES = 128  # of .npy, as numpy writes it for any number of rows
ROWS = 4096  # in memory at once
Row = dict[str, Any]
Order = Callable[[list[Row]], list[Row]]
Chunks = Callable[[], Iterator[list[Row]]]


def kind_of(output: Path, *, vectors: bool) -> Kind:
    """By the ending. Raises WrongUse."""
    kind = KINDS.get(output.suffix.lower())
    if kind is None:
        raise WrongUse(f"{output}: the ending says the format: .npy (vectors), .jsonl or .parquet")
    if kind == "npy" and not vectors:
        raise WrongUse(f"{output}: .npy holds vectors; labels and rankings are .jsonl or .parquet")
    if kind == "parquet":
        parquet()  # it is told now, not when all is done
    return kind


def lines(rows: Sequence[Row]) -> bytes:
    """A line of JSON for each."""
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    return b"".join(orjson.dumps(row, option=option) for row in rows)


def to_stdout(rows: Sequence[Row]) -> None:
    """Lines, at once."""
    sys.stdout.buffer.write(lines(rows))
    sys.stdout.buffer.flush()


def vector_bytes(vectors: NDArray[Any], *, first: bool) -> bytes:
    """What they are in a part; before the first ones, room for the header."""
    return bytes(HEADER_BYTES * first) + vectors.astype("<f4", copy=False).tobytes()


def finish(part: Part, output: Path, kind: Kind, order: Order | None = None) -> None:
    """Make the output of a part that is complete. order: of all rows, which memory holds then."""
    FINISH[kind](part, output, order)
    part.remove()


def _finish_vectors(part: Part, output: Path, _: Order | None) -> None:
    part.patch(_header(part))
    part.close()
    part.path.replace(output)


def _finish_lines(part: Part, output: Path, order: Order | None) -> None:
    part.close()
    if order is None:
        part.path.replace(output)
    else:
        _whole(_write_lines, part.path, output, order)


def _finish_parquet(part: Part, output: Path, order: Order | None) -> None:
    part.close()
    _whole(_write_parquet, part.path, output, order)


def _whole(
    write: Callable[[Chunks, Path], None], lines: Path, output: Path, order: Order | None
) -> None:
    """Write the rows of `lines` to the output, which is there when all are."""
    made = output.with_name(f"{output.name}.made")
    in_order = None if order is None else order(list(_rows(lines)))
    write(partial(_chunks, lines, in_order), made)
    made.replace(output)


def _header(part: Part) -> bytes:
    """numpy's, of float32 [rows, H]."""
    from numpy.lib import format as npy

    width = (part.size - HEADER_BYTES) // (4 * part.rows)
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (part.rows, width)}
    npy.write_array_header_1_0(header, shape)
    if header.tell() != HEADER_BYTES:
        raise RuntimeError(f"numpy's header has {header.tell()} bytes")
    return header.getvalue()


def _rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for line in file:
            yield orjson.loads(line)


def _chunks(path: Path, in_order: list[Row] | None) -> Iterator[list[Row]]:
    rows = _rows(path) if in_order is None else iter(in_order)
    return iter(lambda: list(islice(rows, ROWS)), [])


def _write_lines(chunks: Chunks, made: Path) -> None:
    with made.open("wb") as file:
        for rows in chunks():
            file.write(lines(rows))


def _write_parquet(chunks: Chunks, made: Path) -> None:
    """In row groups. What is empty in one of them (no label over a threshold) has its type from the
    others.
    """
    import pyarrow as pa

    schema = pa.unify_schemas(
        [_table(rows).schema for rows in chunks()], promote_options="permissive"
    )
    with parquet().ParquetWriter(made, schema) as writer:
        for rows in chunks():
            writer.write_table(_table(rows).cast(schema))


def _table(rows: list[Row]) -> Any:
    import pyarrow as pa

    if "embedding" not in rows[0]:
        return pa.Table.from_pylist(rows)
    schema = pa.schema([("text", pa.string()), ("embedding", pa.list_(pa.float32()))])
    return pa.Table.from_pylist(rows, schema)


FINISH: dict[Kind, Callable[[Part, Path, Order | None], None]] = {
    "npy": _finish_vectors,
    "jsonl": _finish_lines,
    "parquet": _finish_parquet,
}
