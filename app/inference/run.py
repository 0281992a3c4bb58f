"""Chosen adapters and texts -> tokens -> the engine -> rows: what every call has in common."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass

from torch import Tensor

from app.engine.admission import QueueFull
from app.engine.engine import Answer
from app.engine.failures import ForwardFailed
from app.engine.tokenizer import Tokens
from app.inference.caller import Caller
from app.inference.choose import Choice, Chosen
from app.inference.errors import TooManyInputs
from app.inference.quota import Charge
from app.inference.read import Texts, read
from app.inference.runtime import Runtime
from app.inference.shadow import Answered, shadow
from app.model.sequence import Sequence, Want

NOTHING: Mapping[str, int] = {}
SHORT = 1000  # characters: tokenised in less time than a thread takes to begin


@dataclass(frozen=True, eq=False)
class Ran:
    """lines[k][i]: the k-th chosen line's fp32 row for input i; tokens[k][i]: what it was read
    as.
    """

    choice: Choice
    lines: list[list[Tensor]]
    tokens: list[list[Tokens]]
    tokenize_s: float
    queue_s: float
    inference_s: float

    @property
    def token_count(self) -> int:
        """Of all sequences run."""
        return sum(len(tokens.ids) for line in self.tokens for tokens in line)


async def run(
    runtime: Runtime,
    caller: Caller,
    choice: Choice,
    texts: Texts,
    want: Callable[[Chosen], Want],
    most_tokens: int | None = None,
) -> Ran:
    """Tokenise off the loop, run everything as one request, cut the rows back into lines.

    Cancelling it, as a deadline does, stops the tokeniser and drops what waits.
    most_tokens: of all inputs together, where the answer grows with them.
    Raises InputRefused, TooManyInputs (over most_tokens), QuotaExceeded, QueueFull, ForwardFailed.
    """
    trace, distinct = caller.trace, choice.distinct
    trace.adapters = list(dict.fromkeys(name for c in distinct for name in c.names))
    trace.versions = [c.stamp for c in distinct]
    for chosen in distinct:
        runtime.metrics.live.called(chosen.version.digest, chosen.name)
    runtime.quotas.charge(_charges(runtime, caller, choice))  # who is in debt is refused at once
    started = time.perf_counter()
    tokens = await _tokens(runtime, choice, texts)
    queued = time.perf_counter()
    trace.steps.append(("tokenize", started, queued))
    counts: Counter[str] = Counter()
    for chosen, sequence in _pairs(choice, tokens):
        for name in chosen.names:
            counts[name] += len(sequence.ids)
    trace.tokens = sum(len(t.ids) for row in tokens for t in row)
    _refuse_over(most_tokens, trace.tokens)
    charges = _charges(runtime, caller, choice, trace.tokens, counts)
    runtime.quotas.charge(charges)
    try:
        answer = await _engine_run(runtime, caller, choice, tokens, want)
    except QueueFull:
        runtime.quotas.give_back(charges)
        raise
    except ForwardFailed as error:  # it counts sequences, line after line
        error.index = None if error.index is None else error.index % len(texts.items)
        raise
    trace.steps.append(("queue", queued, queued + answer.queue_s))
    runtime.metrics.ran(queued - started, answer.queue_s)
    for name, size in counts.items():
        runtime.metrics.tokens.labels(runtime.metrics.label(name)).inc(size)
    count = len(texts.items)
    lines = [answer.rows[k * count : (k + 1) * count] for k in range(len(choice.lines))]
    shadow(runtime, Answered(choice, texts, want, lines))
    return Ran(choice, lines, tokens, queued - started, answer.queue_s, answer.inference_s)


def _refuse_over(most: int | None, tokens: int) -> None:
    if most is not None and tokens > most:
        raise TooManyInputs(
            f"the inputs have {tokens} tokens, over the {most} whose states one answer may hold: "
            "send several requests"
        )


async def _engine_run(
    runtime: Runtime,
    caller: Caller,
    choice: Choice,
    tokens: list[list[Tokens]],
    want: Callable[[Chosen], Want],
) -> Answer:
    pairs = _pairs(choice, tokens)
    sequences = [Sequence(t.ids, t.types, want(c), c.version) for c, t in pairs]
    return await runtime.engine.run(sequences, caller.asker)


def _pairs(choice: Choice, tokens: list[list[Tokens]]) -> list[tuple[Chosen, Tokens]]:
    """Each sequence with the adapter it runs through, line after line."""
    return [
        pair
        for line, row in zip(choice.lines, tokens, strict=True)
        for pair in zip(line, row, strict=True)
    ]


def _charges(
    runtime: Runtime,
    caller: Caller,
    choice: Choice,
    tokens: int = 0,
    by_adapter: Mapping[str, int] = NOTHING,
) -> list[Charge]:
    """The rate limits that the call draws on: its key's and its adapters', each of a sum alike."""
    names = runtime.registry.names
    charges = []
    if key := caller.key:
        charges.append(Charge(f"this key ({key.name})", key.tokens_per_s, tokens))
    for name in dict.fromkeys(name for c in choice.distinct for name in c.names):
        limit = names[name].pointer.tokens_per_s if name in names else None
        charges.append(Charge(f"the adapter {name}", limit, by_adapter.get(name, 0)))
    return charges


async def _tokens(runtime: Runtime, choice: Choice, texts: Texts) -> list[list[Tokens]]:
    """As read(); long texts in a thread, which stops once nobody waits for it."""
    prompt = max(len(texts.prompt(chosen)) for chosen in choice.distinct)
    if texts.size + prompt * len(texts.items) <= SHORT:
        return read(runtime, choice, texts)
    unwanted = threading.Event()

    def check() -> None:
        if unwanted.is_set():
            raise CancelledError

    try:
        return await asyncio.to_thread(read, runtime, choice, texts, check)
    finally:
        unwanted.set()
