"""A text file -> its numbered lines; what is no text is told. Knows encodings; knows no formats."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TextIO

from bert_lora.train.findings import Findings

LONGEST_LINE = 1_000_000  # characters
LOOKED_AT = 1 << 18  # bytes, by which an encoding is guessed
BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


def read_lines(path: Path, encoding: str | None, findings: Findings) -> Iterator[tuple[int, str]]:
    """Each line with its number. One that is too long or no text is told, and left out."""
    encoding, advice = encoding or _encoding(path), ""
    with path.open(encoding=encoding, errors="surrogateescape", newline="\n") as file:
        for number in count(1):
            try:
                line = file.readline(LONGEST_LINE + 1)
            except UnicodeError as error:
                findings.add(f"is not {encoding} ({error}){_advice(path)}", number)
                return
            if not line:
                return
            fault = _fault(line, encoding)
            if fault is None:
                yield number, line
                continue
            advice = advice or _advice(path)
            findings.add(fault + (advice if fault.startswith("is not") else ""), number)
            _skip_rest(file, line)


def _fault(line: str, encoding: str) -> str | None:
    """Why a line is none; None where it is one."""
    if len(line) > LONGEST_LINE:
        return f"longer than {LONGEST_LINE:,} characters"
    if "\0" in line:
        return "has a NUL character: name the file's --encoding"
    if any("\ud800" <= c <= "\udfff" for c in line):
        return f"is not {encoding}"
    return None


def _skip_rest(file: TextIO, line: str) -> None:
    while line and not line.endswith("\n"):
        line = file.readline(LONGEST_LINE + 1)


def is_encoding(encoding: str) -> bool:
    """Does Python know it?"""
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


def _advice(path: Path) -> str:
    """What the file looks like, where it is not what it was read as."""
    import charset_normalizer

    with path.open("rb") as file:
        best = charset_normalizer.from_bytes(file.read(LOOKED_AT)).best()
    if best is not None and best.multi_byte_usage:
        return f": it looks like --encoding {best.encoding}"
    return ": name its --encoding, as cp1252 (Western) or cp1251 (Cyrillic)"
