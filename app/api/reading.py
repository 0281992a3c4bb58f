"""A request's inputs -> tokens, as each chosen adapter reads them. Blocks, and knows no engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.api.choosing import Choice, Chosen
from app.api.embedding import sentence_of
from app.api.serving import Serving
from app.engine.tokenizer import Cut, Input, InputRefused, Tokens, tokenize
from app.engine.windows import Direction


@dataclass(frozen=True)
class Texts:
    """The inputs and how they are to be read. prompt: what goes before each, by adapter."""

    items: Sequence[Input]
    truncate: bool = True
    direction: Direction = "right"
    prompt: Callable[[Chosen], str] = lambda _: ""


def read(
    serving: Serving, choice: Choice, texts: Texts, check: Callable[[], None] = lambda: None
) -> list[list[Tokens]]:
    """Per line and input; inputs of one maximal length and prompt share the work.

    check: called between parts of the work; what it raises ends it. Raises InputRefused.
    """
    ways = {
        c.stamp: (sentence_of(serving, c).max_length or 0, texts.prompt(c)) for c in choice.distinct
    }
    kinds = [[ways[c.stamp] for c in line] for line in choice.lines]
    found: dict[tuple[int, str, int], Tokens] = {}
    for length, prompt in dict.fromkeys(way for line in kinds for way in line):
        way = (length, prompt)
        places = sorted({i for line in kinds for i, w in enumerate(line) if w == way})
        cut = Cut(length, texts.truncate, texts.direction)
        try:
            rows = tokenize(serving.tokenizer, [texts.items[i] for i in places], cut, prompt, check)
        except InputRefused as error:
            raise InputRefused(places[error.index], error.reason) from None
        found |= {(*way, i): row for i, row in zip(places, rows, strict=True)}
    return [[found[(*way, i)] for i, way in enumerate(line)] for line in kinds]
