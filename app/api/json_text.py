"""A JSON text under bounds: counted before it is parsed, and never parsed in one long piece.

A parser holds Python's lock from end to end, and so does the decoding of a string: neighbours wait.
The counting runs without the lock. Long strings are lifted out and decoded piece by piece. Of a
string that is longer than anything reads, only its two ends stay. Why: docs/decisions/0016. Knows
bytes, no bodies.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numba import int64, uint8
from pydantic_core import from_json

from app.engine.windows import LOOK
from app.model.compiled import compiled

LIFTED_BYTES = 8 << 10  # from here on a string is decoded by itself
PIECE_BYTES = 256 << 10  # of a string that are decoded at once
END_BYTES = 12 * LOOK  # of each end that are kept: JSON may spell a character in twelve bytes
DIGITS = 450  # of a number: Python's integers take time by the square
DEEPEST = 16
STRINGS, SCALARS, LISTS, DEPTH, LONGEST_NUMBER = range(5)
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
    counts = np.zeros(5, np.int64)
    rows = len(raw) // min(LIFTED_BYTES, PIECE_BYTES) + len(raw) // PIECE_BYTES + 2
    pieces = np.empty((rows, 4), np.int64)
    seen = np.frombuffer(raw, np.uint8)
    piece_count = _scan(seen, LIFTED_BYTES, PIECE_BYTES, counts, pieces)
    _refuse(counts, most)
    if not piece_count:
        return Parsed(from_json(raw), False)
    try:
        return _lifted(raw, pieces[:piece_count].tolist())
    except ValueError as error:  # its place would be a piece's
        raise ValueError(str(error).partition(" at line ")[0]) from None


def _refuse(counts: np.ndarray, most: Most) -> None:
    """Raises TooMany, ValueError."""
    if counts[DEPTH] > DEEPEST:
        raise ValueError(f"nested {counts[DEPTH]} deep, over {DEEPEST}")
    if counts[LONGEST_NUMBER] > DIGITS:
        raise ValueError(f"a number of {counts[LONGEST_NUMBER]:,} digits, over {DIGITS}")
    for what, index, limit in (
        ("strings", STRINGS, most.strings),
        ("numbers", SCALARS, most.scalars),
        ("lists", LISTS, most.lists),
    ):
        if counts[index] > limit:
            raise TooMany(f"it holds {counts[index]:,} {what}, over {limit:,}")


def _lifted(raw: bytearray, pieces: list[list[int]]) -> Parsed:
    """The value, with its long strings decoded apart. pieces: as _scan's. Raises ValueError."""
    skeleton, strings, done, shortened = bytearray(), [], 0, False
    for number, (begin, group) in enumerate(groupby(pieces, key=lambda piece: piece[2])):
        ends = []
        for start, stop, _, end in group:
            text = from_json(b'"' + raw[start:stop] + b'"')  # also of a middle: it may be no JSON
            if start - begin < END_BYTES or end - stop < END_BYTES:
                ends.append(text)
            else:
                shortened = True
        strings.append("".join(ends))
        skeleton += raw[done:begin] + f"{MARK}{number}".encode()
        done = end
    return Parsed(_restored(from_json(skeleton + raw[done:]), strings), shortened)


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
def _string(raw: Any, start: int, size: int, pieces: Any) -> tuple[int, int]:
    """Where the string that begins at `start` ends (at its closing quote, or with the text), in
    pieces.

    pieces [m, 4] int64: filled with each piece's start, its end, the string's start and its end.
    size: bytes of a piece, and a character's more. Returns the end and how many pieces there are.
    """
    i, last, count = start, start, 0
    after_half = False  # behind the first half of a surrogate pair the text cannot be cut
    while i < len(raw) and raw[i] != QUOTE:
        if i - last >= size and not after_half and (raw[i] & 0xC0) != 0x80:  # nor in a character
            pieces[count, 0], pieces[count, 1] = last, i
            count += 1
            last = i
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
    pieces[count, 0], pieces[count, 1] = last, stop
    pieces[: count + 1, 2], pieces[: count + 1, 3] = start, stop
    return stop, count + 1


@compiled(nogil=True)
def _scan(raw: Any, lifted: int, size: int, counts: Any, pieces: Any) -> int:
    """Count what a JSON text holds, and find its long strings; how many pieces these have.

    raw [n] uint8. lifted: bytes of a long string; size: of a piece of it. counts [5] int64: as
    STRINGS, SCALARS, LISTS, DEPTH, LONGEST_NUMBER. pieces [m, 4] int64: as _string's. What is no
    JSON is counted all the same, and refused by the parser.
    """
    i, depth, filled = 0, 0, 0
    while i < len(raw):
        byte = raw[i]
        if byte == QUOTE:
            counts[0] += 1
            stop, count = _string(raw, i + 1, size, pieces[filled:])
            filled += count if stop - i > lifted and stop < len(raw) else 0
            i = stop
        elif byte in OPENING:
            counts[2] += 1
            depth += 1
            counts[3] = max(counts[3], depth)
        elif byte in CLOSING:
            depth -= 1
        elif byte == 45 or 48 <= byte <= 57 or 97 <= byte <= 122:  # a number or a word
            counts[1] += 1
            first = i
            while i + 1 < len(raw) and _continues(raw[i + 1]):
                i += 1
            counts[4] = max(counts[4], i - first)
        i += 1
    return filled


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
