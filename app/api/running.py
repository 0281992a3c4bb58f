"""A validated request -> tokens -> the engine -> rows; what every inference route shares."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import Request
from torch import Tensor

from app.api.choosing import Choice, Chosen
from app.api.deadline import LATE, TIMEOUT, time_left_s
from app.api.errors import Refusal
from app.api.keys import key_of
from app.api.overload import asker_of
from app.api.reading import Texts, read
from app.api.serving import Serving
from app.api.shadowing import Answered, shadow
from app.engine.engine import Answer, Ask
from app.engine.queue import Asker, QueueFull
from app.engine.quota import Charge
from app.engine.tokenizer import Input, Tokens
from app.model.batch import Want

SHORT = 1000  # characters: tokenised in less time than a thread takes to begin


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

    Raises InputRefused, QuotaExceeded, QueueFull, ForwardFailed, Refusal.
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
    time_left_s(request.headers.get(TIMEOUT), request.state.began)  # refused before the work
    started = time.perf_counter()
    if sum(map(_size, texts.items)) <= SHORT:
        tokens = read(serving, choice, texts)
    else:
        tokens = await asyncio.to_thread(read, serving, choice, texts)
    tokenize_s = time.perf_counter() - started
    asks = [
        Ask(t, want(c), c.version)
        for line, row in zip(choice.lines, tokens, strict=True)
        for c, t in zip(line, row, strict=True)
    ]
    charges = _charges(request, serving, asks, choice)
    serving.quotas.charge(charges)
    asker = await asker_of(request)
    try:
        answer = await _unless_gone(request, serving, asks, asker)
    except QueueFull:
        serving.quotas.give_back(charges)
        raise
    count = len(texts.items)
    for ask, chosen in zip(asks, (c for line in choice.lines for c in line), strict=True):
        serving.metrics.tokens.labels(chosen.name).inc(len(ask.tokens.ids))
        serving.automerge.served[chosen.name] += len(ask.tokens.ids)
    lines = [answer.rows[k * count : (k + 1) * count] for k in range(len(choice.lines))]
    shadow(serving, Answered(choice, texts, want, lines))
    return Ran(lines, tokens, _headers(choice, tokenize_s, answer))


def _charges(
    request: Request, serving: Serving, asks: Sequence[Ask], choice: Choice
) -> list[Charge]:
    """What the request counts for: its key, and each of its adapters."""
    key, names = key_of(request), serving.registry.names
    tokens: Counter[str] = Counter()
    for ask, chosen in zip(asks, (c for line in choice.lines for c in line), strict=True):
        tokens[chosen.name] += len(ask.tokens.ids)
    charges = [Charge(f"this key ({key.name})", key.tokens_per_s, tokens.total())] if key else []
    for name, count in tokens.items():
        limit = names[name].tokens_per_s if name in names else None
        charges.append(Charge(f"the adapter {name}", limit, count))
    return charges


def _headers(choice: Choice, tokenize_s: float, answer: Answer) -> dict[str, str]:
    steps = {"tokenize": tokenize_s, "queue": answer.queue_s, "inference": answer.inference_s}
    return {
        "X-Adapter": ", ".join(c.stamp for c in choice.distinct),
        "Server-Timing": ", ".join(f"{k};dur={1000 * s:.2f}" for k, s in steps.items()),
    }


def _size(item: Input) -> int:
    """Characters, or token ids."""
    return sum(map(len, item)) if isinstance(item, tuple) else len(item)


async def _unless_gone(
    request: Request,
    serving: Serving,
    asks: list[Ask],
    asker: Asker,
) -> Answer:
    """The engine's answer; what waits of it is dropped once the client has gone or its time is over."""
    running = asyncio.ensure_future(serving.engine.run(asks, asker))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        done, _ = await asyncio.wait(
            {running, gone},
            timeout=time_left_s(request.headers.get(TIMEOUT), request.state.began),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if running.done():
            return running.result()
        if not done:
            raise LATE
        raise Refusal(499, "client_gone", "the client went away")  # nobody reads this
    finally:
        gone.cancel()
        running.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
