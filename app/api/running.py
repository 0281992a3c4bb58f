"""A validated request -> tokens -> the engine -> rows; what every inference route shares."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import Request
from torch import Tensor

from app.api.choosing import Choice, Chosen
from app.api.errors import Refusal
from app.api.serving import Serving
from app.engine.engine import Answer, Ask
from app.engine.tokenizer import Cut, Direction, Input, InputRefused, Tokens, tokenize
from app.model.batch import Want


@dataclass(frozen=True)
class Texts:
    """The inputs and how they are to be read."""

    items: Sequence[Input]
    truncate: bool
    direction: Direction
    prompt: str


@dataclass(frozen=True, eq=False)
class Ran:
    """lines[k][i]: the k-th chosen line's fp32 row for input i. tokens: of all sequences run."""

    lines: list[list[Tensor]]
    tokens: int
    headers: dict[str, str]


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
    tokens = await asyncio.to_thread(_tokenize, serving, choice, texts)
    tokenize_s = time.perf_counter() - started
    asks = [
        Ask(t, want(c), c.version)
        for line, row in zip(choice.lines, tokens, strict=True)
        for c, t in zip(line, row, strict=True)
    ]
    answer = await _unless_gone(request, serving, asks)
    count = len(texts.items)
    for ask, chosen in zip(asks, (c for line in choice.lines for c in line), strict=True):
        serving.metrics.tokens.labels(chosen.name).inc(len(ask.tokens.ids))
    return Ran(
        [answer.rows[k * count : (k + 1) * count] for k in range(len(choice.lines))],
        sum(len(ask.tokens.ids) for ask in asks),
        _headers(choice, tokenize_s, answer),
    )


def _headers(choice: Choice, tokenize_s: float, answer: Answer) -> dict[str, str]:
    steps = {"tokenize": tokenize_s, "queue": answer.queue_s, "inference": answer.inference_s}
    return {
        "X-Adapter": ", ".join(c.stamp for c in choice.distinct),
        "Server-Timing": ", ".join(f"{k};dur={1000 * s:.2f}" for k, s in steps.items()),
    }


def max_length(serving: Serving, chosen: Chosen) -> int:
    """The adapter's, never over the base's; in tokens, special ones included."""
    base = serving.engine.encoder.max_length
    own = chosen.version.adapter.max_length if chosen.version else None
    return min(own or base, base)


def _tokenize(serving: Serving, choice: Choice, texts: Texts) -> list[list[Tokens]]:
    """Per line and input; lines of one maximal length share the work."""
    encoder = serving.engine.encoder
    lengths = [[max_length(serving, c) for c in line] for line in choice.lines]
    found: dict[tuple[int, int], Tokens] = {}
    for length in {n for line in lengths for n in line}:
        places = sorted({i for line in lengths for i, n in enumerate(line) if n == length})
        cut = Cut(length, texts.truncate, texts.direction)
        items = [texts.items[i] for i in places]
        try:
            rows = tokenize(serving.tokenizer, items, cut, texts.prompt, encoder.vocabulary)
        except InputRefused as error:
            raise InputRefused(places[error.index], error.reason) from None
        found |= {(length, i): row for i, row in zip(places, rows, strict=True)}
    return [[found[n, i] for i, n in enumerate(line)] for line in lengths]


async def _unless_gone(request: Request, serving: Serving, asks: list[Ask]) -> Answer:
    """The engine's answer; what waits of it is dropped once the client has gone."""
    running = asyncio.ensure_future(serving.engine.run(asks))
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
