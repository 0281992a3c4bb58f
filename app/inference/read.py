"""A call's inputs -> tokens, as each chosen adapter reads them. Blocks; knows no engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.engine.tokenizer import Cut, Input, InputRefused, Tokens, tokenize
from app.engine.windows import Direction
from app.inference.choose import Choice, Chosen
from app.inference.runtime import Runtime


@dataclass(frozen=True)
class Texts:
    """The inputs, and how they are to be read.

    truncate: cut what is too long, at the end that direction names; else it is refused. shortened:
    the middle of a very long text was left out already. prompt: what goes before each, by adapter.
    max_tokens: what is too long, special tokens counted; None, or over it: what the adapter takes.
    """

    items: Sequence[Input]
    truncate: bool = True
    direction: Direction = "right"
    shortened: bool = False
    prompt: Callable[[Chosen], str] = lambda _: ""
    max_tokens: int | None = None

    @property
    def size(self) -> int:
        """Characters, or token ids, of all items, prompts aside."""
        return sum(sum(map(len, i)) if isinstance(i, tuple) else len(i) for i in self.items)


def read(
    runtime: Runtime, choice: Choice, texts: Texts, check: Callable[[], None] = lambda: None
) -> list[list[Tokens]]:
    """Tokens per line and input; inputs of one maximal length and prompt share the work.

    check: called between parts of the work; what it raises ends it. Raises InputRefused.
    """
    ways = {
        c.stamp: (_max_length(runtime, c, texts.max_tokens), texts.prompt(c))
        for c in choice.distinct
    }
    lines = [[ways[c.stamp] for c in line] for line in choice.lines]
    tokens: dict[tuple[int, str, int], Tokens] = {}
    for way in dict.fromkeys(way for line in lines for way in line):
        max_length, prompt = way
        places = sorted({i for line in lines for i, other in enumerate(line) if other == way})
        cut = Cut(max_length, texts.truncate, texts.direction)
        try:
            rows = tokenize(runtime.tokenizer, [texts.items[i] for i in places], cut, prompt, check)
        except InputRefused as error:
            raise InputRefused(places[error.index], error.reason, error.cause) from None
        tokens |= {(*way, i): row for i, row in zip(places, rows, strict=True)}
    return [[tokens[(*way, i)] for i, way in enumerate(line)] for line in lines]


def _max_length(runtime: Runtime, chosen: Chosen, max_tokens: int | None) -> int:
    own = runtime.sentence(chosen.version).max_length or 0
    return own if max_tokens is None else min(own, max_tokens)
