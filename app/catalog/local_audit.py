"""A local store's audit: JSON lines in files of bounded size, the oldest of which go.

    audit/<id>.jsonl    records in order, the first of which has this id

A record is on the disk before it is acknowledged. A kill may leave half a line, which nobody reads
and the next record ends. Knows lines; knows nothing of what they say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson

from app.catalog.disk import disk_errors, fsync
from app.catalog.store import Json
from app.catalog.workspace import Workspace

FILE_BYTES = 4 << 20
FILES = 16  # 64 MiB: some 200,000 records
TAIL_BYTES = 16 << 10  # of a file, in which its last record is
LINES = ".jsonl"


class LocalAudit:
    """What threads and processes share is on the disk, behind the workspace's lock."""

    def __init__(self, folder: Path, workspace: Workspace) -> None:
        self._folder = folder
        self._workspace = workspace

    def append(self, record: Json) -> None:
        """As store.Store.append_audit."""
        self._workspace.refuse_read_only()
        with self._workspace.locked(), disk_errors():
            self._folder.mkdir(exist_ok=True)
            files = self._files()
            last = files[-1] if files else None
            tail = _tail(last) if last else b""
            number = max(time.time_ns(), _last_id(tail) + 1)
            line = orjson.dumps({"id": _id(number), **record}) + b"\n"
            if last is None or last.stat().st_size + len(line) > FILE_BYTES:
                self._begin(self._folder / f"{_id(number)}{LINES}", line)
                for old in files[: max(0, len(files) + 1 - FILES)]:
                    old.unlink()
            else:
                _append(last, line if tail.endswith(b"\n") else b"\n" + line)

    def _begin(self, path: Path, line: bytes) -> None:
        _append(path, line)
        fsync(self._folder)
        fsync(self._folder.parent)

    def read(self, before: str, most: int, wanted: Callable[[Json], bool]) -> list[Json]:
        """As store.Store.read_audit."""
        page: list[Json] = []
        with disk_errors():
            for record in self._newest_first(before):
                if wanted(record):
                    page.append(record)
                if len(page) == most:
                    break
        return page

    def _newest_first(self, before: str) -> Iterator[Json]:
        for path in reversed(self._files()):
            if before and path.stem >= before:
                continue
            try:
                lines = path.read_bytes().split(b"\n")
            except FileNotFoundError:  # the oldest, which has just gone
                continue
            for record in filter(None, map(_record, reversed(lines))):
                if not before or record["id"] < before:
                    yield record

    def _files(self) -> list[Path]:
        """The oldest first."""
        return sorted(self._folder.glob(f"*{LINES}"))


def _id(number: int) -> str:
    """Ids sort as their numbers do."""
    return f"{number:020d}"


def _append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read()


def _last_id(tail: bytes) -> int:
    """Of the last whole record there; 0: there is none."""
    last = next(filter(None, map(_record, reversed(tail.split(b"\n")))), None)
    return int(last["id"]) if last else 0


def _record(line: bytes) -> Json | None:
    """None for half a line, and for what is no record."""
    try:
        record = orjson.loads(line) if line else None
    except orjson.JSONDecodeError:
        return None
    known = isinstance(record, dict) and str(record.get("id", "")).isdigit()
    return record if known else None
