"""A JSON text under bounds: counted before it is parsed, and never parsed in one long piece.

Python's lock is held while a text is parsed and while a string becomes Python's, so a neighbour would
wait for both. The counting runs without the lock. Long strings are lifted out and decoded one by one,
and of one that is longer than anything reads, only its two ends. Why: docs/decisions/0016. Knows bytes; knows no bodies.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import int64, uint8
from pydantic_core import from_json

from app.engine.windows import LOOK
from app.model.compiled import compiled

LIFTED_BYTES = 8 << 10  # from here on a string is decoded by itself
END_BYTES = 6 * LOOK  # of each end of a very long string: JSON may spell a character in six bytes
DEEPEST = 16
STRINGS, SCALARS, LISTS, DEPTH = range(4)
MARK = secrets.token_hex(16)  # stands where a string was lifted out; nobody can guess it


@dataclass(frozen=True)
class Most:
    """What a text may hold. scalars: numbers, true, false, null; lists: objects too."""

    strings: int
    scalars: int
    lists: int


class TooMany(Exception):
    """More strings, numbers or lists than may be."""


@dataclass(frozen=True)
class Parsed:
    """shortened: whether the middle of a very long string was left out."""

    value: Any
    shortened: bool


def parse_json(raw: bytearray, most: Most) -> Parsed:
    """Raises TooMany; ValueError for what is no JSON, or nested too deep."""
    counts = np.zeros(4, np.int64)
    spans = np.empty((len(raw) // LIFTED_BYTES + 2, 4), np.int64)  # and one to write on
    found = _scan(np.frombuffer(raw, np.uint8), LIFTED_BYTES, END_BYTES, counts, spans)
    if counts[DEPTH] > DEEPEST:
        raise ValueError(f"nested {counts[DEPTH]} deep, over {DEEPEST}")
    for what, index, limit in (
        ("strings", STRINGS, most.strings),
        ("numbers", SCALARS, most.scalars),
        ("lists", LISTS, most.lists),
    ):
        if counts[index] > limit:
            raise TooMany(f"it holds {counts[index]:,} {what}, over {limit:,}")
    if not found:
        return Parsed(from_json(raw), False)
    skeleton, lifted, end = bytearray(), [], 0
    for number, (start, head, tail, stop) in enumerate(spans[:found].tolist()):
        skeleton += raw[end:start] + f"{MARK}{number}".encode()
        lifted.append(from_json(b'"' + raw[start:head] + raw[tail:stop] + b'"'))
        end = stop
    shortened = bool((spans[:found, 1] < spans[:found, 2]).any())
    return Parsed(_restored(from_json(skeleton + raw[end:]), lifted), shortened)


def _restored(value: Any, lifted: list[str]) -> Any:
    """The value with the strings that were lifted out back in their places."""
    if isinstance(value, str):
        return lifted[int(value.removeprefix(MARK))] if value.startswith(MARK) else value
    if isinstance(value, list):
        return [
            _restored(one, lifted) if isinstance(one, (str, list, dict)) else one for one in value
        ]
    if isinstance(value, dict):
        return {_restored(name, lifted): _restored(one, lifted) for name, one in value.items()}
    return value


QUOTE, BACKSLASH, U = 34, 92, 117  # as bytes
OPENING, CLOSING = (91, 123), (93, 125)  # [ { and ] }


@compiled(nogil=True)
def _string(raw: Any, start: int, end: int, span: Any) -> int:
    """Where the string that begins at `start` ends: at its closing quote, or with the text.

    span [4] int64: filled as _scan's. end: bytes of each end of a string that keeps only its ends.
    """
    i, head, older, newer = start, 0, start, start
    after_half = False  # behind the first half of a surrogate pair the text cannot be cut
    while i < len(raw) and raw[i] != QUOTE:
        if not after_half and (raw[i] & 0xC0) != 0x80:  # nor within a character
            if head == 0 and i - start >= end:
                head = i
            if i - newer >= end // 2:
                older, newer = newer, i
        after_half = False
        if raw[i] != BACKSLASH:
            i += 1
        elif i + 5 < len(raw) and raw[i + 1] == U:
            first, second = raw[i + 2] | 32, raw[i + 3] | 32  # \ud800 to \udbff
            after_half = first == 100 and (56 <= raw[i + 3] <= 57 or 97 <= second <= 98)
            i += 6
        else:
            i += 2
    stop = min(i, len(raw))
    whole = stop - start <= 2 * end
    span[0], span[3] = start, stop
    span[1], span[2] = (stop, stop) if whole else (head, older)
    return stop


@compiled(nogil=True)
def _scan(raw: Any, lifted: int, end: int, counts: Any, spans: Any) -> int:
    """Count what a JSON text holds, and find its long strings; how many of these there are.

    raw [n] uint8. lifted: bytes of a long string; end: of each end of one that keeps only its ends.
    counts [4] int64: as STRINGS, SCALARS, LISTS, DEPTH. spans [m + 1, 4] int64: a long string's first
    byte, where its first part ends and its second begins (both its end where it stays whole), its end.
    What is no JSON is counted all the same, and refused by the parser.
    """
    i, depth, found = 0, 0, 0
    while i < len(raw):
        byte = raw[i]
        if byte == QUOTE:
            counts[0] += 1
            stop = _string(raw, i + 1, end, spans[found])
            found += stop - i > lifted and stop < len(raw)
            i = stop
        elif byte in OPENING:
            counts[2] += 1
            depth += 1
            counts[3] = max(counts[3], depth)
        elif byte in CLOSING:
            depth -= 1
        elif byte == 45 or 48 <= byte <= 57 or 97 <= byte <= 122:  # a number or a word
            counts[1] += 1
            while i + 1 < len(raw) and _continues(raw[i + 1]):
                i += 1
        i += 1
    return found


@compiled(nogil=True)
def _continues(byte: int) -> bool:
    """Whether a number or a word goes on: a digit, + - . or a letter."""
    return (43 <= byte <= 57 and byte != 44) or 97 <= (byte | 32) <= 122


def compile_only() -> None:
    """Compile for NUMBA_CPU_NAME, be it another processor than this one."""
    _scan.compile((uint8[::1], int64, int64, int64[::1], int64[:, ::1]))


def prepare() -> None:
    """Compile now, or load what an earlier start compiled, rather than at the first request."""
    parse_json(bytearray(b"{}"), Most(1, 1, 1))
