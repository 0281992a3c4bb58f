"""A call's texts -> pieces, each of which is one request. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bert_lora.errors import WrongText

Text = str | tuple[str, str] | list[int]
PIECE_TEXTS = 256
PIECE_BYTES = 256 << 10


@dataclass(frozen=True)
class Piece:
    """Texts that follow each other in a call, of which the first is its text `start`.

    adapters: one for each text; None: all have the call's.
    """

    start: int
    texts: Sequence[Text]
    adapters: Sequence[str | None] | None = None

    def halves(self) -> tuple[Piece, Piece]:
        """Two pieces, of a piece that is too large; it has two texts at least."""
        middle = len(self.texts) // 2
        first, second = self.adapters, self.adapters
        if self.adapters is not None:
            first, second = self.adapters[:middle], self.adapters[middle:]
        return (
            Piece(self.start, self.texts[:middle], first),
            Piece(self.start + middle, self.texts[middle:], second),
        )


def pieces(
    texts: Iterable[Text], most: int, adapters: Sequence[str | None] | None = None
) -> Iterator[Piece]:
    """Pieces of at most `most` texts, and no more bytes than fill many forward passes.

    Raises WrongText.
    """
    start, piece, size = 0, list[Text](), 0
    for i, text in enumerate(texts):
        length = _bytes(text, i)
        if piece and (len(piece) >= min(most, PIECE_TEXTS) or size + length > PIECE_BYTES):
            yield _piece(start, piece, adapters)
            start, piece, size = start + len(piece), [], 0
        piece.append(text)
        size += length
    if piece:
        yield _piece(start, piece, adapters)


def _piece(start: int, texts: list[Text], adapters: Sequence[str | None] | None) -> Piece:
    own = None if adapters is None else adapters[start : start + len(texts)]
    return Piece(start, texts, own)


def _bytes(text: Any, index: int) -> int:
    """About as many as it has in a body. Raises WrongText."""
    if isinstance(text, str):
        try:
            return len(text.encode())
        except UnicodeEncodeError:
            reason = "holds half of a surrogate pair, which is no character"
            raise WrongText(index, reason) from None
    if isinstance(text, tuple):
        return sum(_bytes(part, index) for part in text)
    if isinstance(text, list):
        return 8 * len(text)
    kind = type(text).__name__
    raise WrongText(index, f"is a {kind}, and no text, pair of texts or list of token ids")
