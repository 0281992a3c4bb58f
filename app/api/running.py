"""A validated request -> tokens -> the engine -> rows; what every inference route shares."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from torch import Tensor

from app.api.answer import header_list
from app.api.choosing import Choice, Chosen
from app.api.deadline import LATE, TIMEOUT, time_left_s
from app.api.errors import Refusal
from app.api.keys import key_of
from app.api.overload import asker_of
from app.api.reading import Texts, read
from app.api.serving import Serving
from app.api.shadowing import Answered, shadow
from app.engine.engine import Answer, Ask
from app.engine.queue import QueueFull
from app.engine.tokenizer import Input, Tokens
from app.inference.quota import Charge
from app.model.batch import Want

T = TypeVar("T")
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
    if len(texts.items) * len(choice.lines) > serving.max_client_batch:
        times = f" through {len(choice.lines)} adapters" if choice.fan_out else ""
        raise Refusal(
            413,
            "too_many_inputs",
            f"{len(texts.items)} inputs{times} are over the {serving.max_client_batch} of one "
            "request (MAX_CLIENT_BATCH): send several requests",
        )
    time_left_s(request.headers.get(TIMEOUT), request.state.began)  # refused before the work
    asker = await asker_of(request)
    serving.quotas.charge(_charges(request, serving, Counter(), choice))  # who is in debt, likewise
    started = time.perf_counter()
    tokens = await _tokens(request, serving, choice, texts)
    tokenize_s = time.perf_counter() - started
    chosen = [c for line in choice.lines for c in line]
    sequences = [t for row in tokens for t in row]
    asks = [Ask(t, want(c), c.version) for c, t in zip(chosen, sequences, strict=True)]
    counts: Counter[str] = Counter()
    for c, t in zip(chosen, sequences, strict=True):
        counts[c.name] += len(t.ids)
    charges = _charges(request, serving, counts, choice)
    serving.quotas.charge(charges)
    try:
        answer = await _unless_gone(request, serving.engine.run(asks, asker))
    except QueueFull:
        serving.quotas.give_back(charges)
        raise
    count = len(texts.items)
    for name, size in counts.items():
        serving.metrics.tokens.labels(serving.metrics.label(name)).inc(size)
    lines = [answer.rows[k * count : (k + 1) * count] for k in range(len(choice.lines))]
    shadow(serving, Answered(choice, texts, want, lines))
    return Ran(lines, tokens, _headers(choice, tokenize_s, answer))


def _charges(
    request: Request, serving: Serving, tokens: Counter[str], choice: Choice
) -> list[Charge]:
    """What the request counts for: its key, and each of its adapters with so many tokens."""
    key, names = key_of(request), serving.registry.names
    charges = [Charge(f"this key ({key.name})", key.tokens_per_s, tokens.total())] if key else []
    for name in dict.fromkeys(c.name for c in choice.distinct):
        limit = names[name].pointer.tokens_per_s if name in names else None
        charges.append(Charge(f"the adapter {name}", limit, tokens[name]))
    return charges


def _headers(choice: Choice, tokenize_s: float, answer: Answer) -> dict[str, str]:
    steps = {"tokenize": tokenize_s, "queue": answer.queue_s, "inference": answer.inference_s}
    return {
        "X-Adapter": header_list([c.stamp for c in choice.distinct]),
        "Server-Timing": ", ".join(f"{k};dur={1000 * s:.2f}" for k, s in steps.items()),
    }


def _size(item: Input) -> int:
    """Characters, or token ids."""
    return sum(map(len, item)) if isinstance(item, tuple) else len(item)


async def _tokens(
    request: Request, serving: Serving, choice: Choice, texts: Texts
) -> list[list[Tokens]]:
    """As reading.read; long texts in a thread, until the client has gone or its time is over."""
    prompt = max(len(texts.prompt(chosen)) for chosen in choice.distinct)
    if sum(map(_size, texts.items)) + prompt * len(texts.items) <= SHORT:
        return read(serving, choice, texts)
    unwanted = threading.Event()

    def check() -> None:
        if unwanted.is_set():
            raise CancelledError

    try:
        return await _unless_gone(request, asyncio.to_thread(read, serving, choice, texts, check))
    finally:
        unwanted.set()


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives; it is cancelled once the client has gone or its time is over.

    Raises Refusal (499), HTTPException (504).
    """
    running = asyncio.ensure_future(work)
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
