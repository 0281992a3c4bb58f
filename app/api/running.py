"""A validated request -> tokens -> the engine -> rows; what every inference route shares."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import Request
from torch import Tensor

from app.api.choosing import Choice, Chosen
from app.api.embedding import sentence_of
from app.api.errors import Refusal
from app.api.overload import asker_of
from app.api.serving import Serving
from app.engine.engine import Answer, Ask
from app.engine.queue import Asker
from app.engine.tokenizer import Cut, Direction, Input, InputRefused, Tokens, tokenize
from app.model.batch import Want

SHORT = 1000  # characters: tokenised in less time than a thread takes to begin


@dataclass(frozen=True)
class Texts:
    """The inputs and how they are to be read. prompt: what goes before each, by adapter."""

    items: Sequence[Input]
    truncate: bool = True
    direction: Direction = "right"
    prompt: Callable[[Chosen], str] = lambda _: ""


@dataclass(frozen=True, eq=False)
class Ran:
    """lines[k][i]: the k-th chosen line's fp32 row for input i; read[k][i]: its tokens."""

    lines: list[list[Tensor]]
    read: list[list[Tokens]]
    headers: dict[str, str]

    @property
    def tokens(self) -> int:
        """Of all sequences run."""
        return sum(len(tokens.ids) for line in self.read for tokens in line)


async def run(
    request: Request,
    serving: Serving,
    choice: Choice,
    texts: Texts,
    want: Callable[[Chosen], Want],
) -> Ran:
    """Tokenise off the loop, run everything as one ticket, cut the rows back into lines.

    Raises InputRefused, QueueFull, Refusal.
    """
    request.state.adapters = list(dict.fromkeys(c.name for c in choice.distinct))
    sequences = len(texts.items) * len(choice.lines)
    if sequences > serving.max_client_batch:
        times = f" through {len(choice.lines)} adapters" if choice.fan_out else ""
        raise Refusal(
            413,
            "too_many_inputs",
            f"{len(texts.items)} inputs{times} are over the {serving.max_client_batch} of one "
            "request (MAX_CLIENT_BATCH): send several requests",
        )
    started = time.perf_counter()
    if sum(map(_size, texts.items)) <= SHORT:
        tokens = _tokenize(serving, choice, texts)
    else:
        tokens = await asyncio.to_thread(_tokenize, serving, choice, texts)
    tokenize_s = time.perf_counter() - started
    asks = [
        Ask(t, want(c), c.version)
        for line, row in zip(choice.lines, tokens, strict=True)
        for c, t in zip(line, row, strict=True)
    ]
    answer = await _unless_gone(request, serving, asks, await asker_of(request))
    count = len(texts.items)
    for ask, chosen in zip(asks, (c for line in choice.lines for c in line), strict=True):
        serving.metrics.tokens.labels(chosen.name).inc(len(ask.tokens.ids))
        serving.automerge.served[chosen.name] += len(ask.tokens.ids)
    return Ran(
        [answer.rows[k * count : (k + 1) * count] for k in range(len(choice.lines))],
        tokens,
        _headers(choice, tokenize_s, answer),
    )


def _headers(choice: Choice, tokenize_s: float, answer: Answer) -> dict[str, str]:
    steps = {"tokenize": tokenize_s, "queue": answer.queue_s, "inference": answer.inference_s}
    return {
        "X-Adapter": ", ".join(c.stamp for c in choice.distinct),
        "Server-Timing": ", ".join(f"{k};dur={1000 * s:.2f}" for k, s in steps.items()),
    }


def _tokenize(serving: Serving, choice: Choice, texts: Texts) -> list[list[Tokens]]:
    """Per line and input; inputs of one maximal length and prompt share the work."""
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
            rows = tokenize(serving.tokenizer, [texts.items[i] for i in places], cut, prompt)
        except InputRefused as error:
            raise InputRefused(places[error.index], error.reason) from None
        found |= {(*way, i): row for i, row in zip(places, rows, strict=True)}
    return [[found[(*way, i)] for i, way in enumerate(line)] for line in kinds]


def _size(item: Input) -> int:
    """Characters, or token ids."""
    return sum(map(len, item)) if isinstance(item, tuple) else len(item)


async def _unless_gone(request: Request, serving: Serving, asks: list[Ask], asker: Asker) -> Answer:
    """The engine's answer; what waits of it is dropped once the client has gone."""
    running = asyncio.ensure_future(serving.engine.run(asks, asker))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        raise Refusal(499, "client_gone", "the client went away")  # nobody reads this
    finally:
        gone.cancel()
        running.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
