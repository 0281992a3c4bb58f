"""A long text is tokenised only as far as its tokens fit: the ids are those of cutting afterwards.

Two windows from the end that stays (the beginning, for a cut on the right) are tokenised, one SHIFT
characters longer than the other. Where both give the same tokens up to AHEAD characters before the
cut, the text beyond the cut does not matter to them. Else both windows grow, up to LOOK characters;
the rest of such a text is not read. Why: docs/decisions/0015-long-texts.md. Knows a fast tokenizer
and texts; knows no inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers import Encoding, Tokenizer

Direction = Literal["left", "right"]

LOOK = 65_536  # characters of a text that are tokenised at most
AHEAD = 128  # WordPiece looks at whole words of up to 100 characters, and knows no longer ones
SHIFT = 97  # a prime: no grouping of letters by twos or threes looks alike from both windows
CHARS_PER_TOKEN = 8  # of the first window: English has 4 to 5
GROWTH = 4
AT_ONCE = 64  # windows between two looks at whether the work is still wanted


@dataclass(frozen=True, eq=False)
class Encoded:
    """A text's tokens without special ones; equal texts share them.

    places: each token's first and last character. whole: these are all of its tokens; else it has
    more than fit.
    """

    ids: list[int]
    places: list[tuple[int, int]]
    whole: bool


def encode(
    backend: Tokenizer,
    texts: Sequence[str],
    room: int,
    direction: Direction,
    check: Callable[[], None],
) -> list[Encoded]:
    """Each text's tokens: all of them, or more than `room` from the end that stays.

    check: called between parts of the work; an exception of its ends the work. Blocks, for most of
    the time without Python's lock.
    """
    encoded: dict[str, Encoded] = {}
    waiting = dict.fromkeys(texts)
    size = CHARS_PER_TOKEN * (room + 1) + 2 * AHEAD
    while waiting:
        short = [text for text in waiting if len(text) <= size + SHIFT]
        whole = _encode(backend, short, check)
        encoded |= {text: Encoded(e.ids, e.offsets, True) for text, e in whole.items()}
        long = [text for text in waiting if len(text) > size + SHIFT]
        windows = {
            t: (_window(t, size, direction), _window(t, size + SHIFT, direction)) for t in long
        }
        encodings = _encode(backend, [w for pair in windows.values() for w in pair], check)
        waiting = {}
        for text, (window, longer) in windows.items():
            settled = _settled(encodings[window], encodings[longer], size, room, direction)
            if settled or size >= LOOK:
                offset = len(text) - size if direction == "left" else 0
                encoded[text] = _of_window(encodings[window], room + 1, direction, offset)
            else:
                waiting[text] = None
        size = min(size * GROWTH, LOOK) if size < LOOK else size
    return [encoded[text] for text in texts]


def length(backend: Tokenizer, text: str) -> int:
    """How many tokens the text has, in its first LOOK characters."""
    return len(backend.encode_batch([text[:LOOK]], add_special_tokens=False)[0])


def _window(text: str, size: int, direction: Direction) -> str:
    return text[:size] if direction == "right" else text[-size:]


def _of_window(window: Encoding, most: int, direction: Direction, offset: int) -> Encoded:
    """Its first or last tokens. offset: characters of the text before the window."""
    stays = slice(most) if direction == "right" else slice(max(0, len(window) - most), None)
    places = [(start + offset, end + offset) for start, end in window.offsets[stays]]
    return Encoded(window.ids[stays], places, whole=False)


def _encode(
    backend: Tokenizer, texts: Sequence[str], check: Callable[[], None]
) -> dict[str, Encoding]:
    """encode_batch, which lets other threads go on meanwhile; encode does not. Equal texts once."""
    distinct = list(dict.fromkeys(texts))
    encodings: dict[str, Encoding] = {}
    for start in range(0, len(distinct), AT_ONCE):
        check()
        part = distinct[start : start + AT_ONCE]
        rows = backend.encode_batch(part, add_special_tokens=False)
        encodings |= zip(part, rows, strict=True)
    return encodings


def _settled(
    window: Encoding, longer: Encoding, size: int, room: int, direction: Direction
) -> bool:
    """Whether more than `room` tokens stand AHEAD of the window's cut, alike in both windows."""
    need = room + 1
    if min(len(window), len(longer)) < need:
        return False
    if direction == "right":
        _, end = window.offsets[need - 1]
        return end <= size - AHEAD and window.ids[:need] == longer.ids[:need]
    begin, _ = window.offsets[-need]
    return begin >= AHEAD and window.ids[-need:] == longer.ids[-need:]
