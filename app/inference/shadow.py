"""Running a trial's version beside the one that answered, and comparing; never in anybody's way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from app.catalog.draw import distance, same
from app.engine.admission import Asker, QueueFull
from app.inference.choose import Choice, Chosen
from app.inference.read import Texts, read
from app.inference.runtime import Runtime
from app.model.sequence import Sequence, Want

log = logging.getLogger(__name__)
AT_ONCE = 4  # comparisons; what comes beyond, or while a batch is waiting, is skipped


@dataclass(frozen=True, eq=False)
class Answered:
    """What a client was answered: the inputs and, by line and input, the rows."""

    choice: Choice
    texts: Texts
    want: Callable[[Chosen], Want]
    lines: list[list[Tensor]]


def shadow(runtime: Runtime, answered: Answered) -> None:
    """Begin to run what was answered through the shadows that take part; nobody waits for it."""
    for chosen in answered.choice.distinct:
        if chosen.shadow is None:
            continue
        waiting = runtime.engine.admission.tokens
        if len(runtime.shadows) >= AT_ONCE or waiting > runtime.engine.max_batch_tokens:
            runtime.metrics.shadow.labels(runtime.metrics.label(chosen.name), "skipped").inc()
            continue
        task = asyncio.create_task(_compare(runtime, answered, chosen, chosen.shadow))
        runtime.shadows.add(task)
        task.add_done_callback(runtime.shadows.discard)


async def _compare(runtime: Runtime, answered: Answered, chosen: Chosen, digest: str) -> None:
    counted, texts = runtime.metrics.shadow, answered.texts
    label = runtime.metrics.label(chosen.name)
    at = [
        (k, i)
        for k, line in enumerate(answered.choice.lines)
        for i, c in enumerate(line)
        if c.stamp == chosen.stamp
    ]
    try:
        version = await runtime.fetcher.load_stored(digest)
        other = replace(chosen, version=version)
        choice = Choice([[other] * len(at)], False)
        inputs = replace(texts, items=[texts.items[i] for _, i in at])
        tokens = (await asyncio.to_thread(read, runtime, choice, inputs))[0]
        want = answered.want(other)
        sequences = [Sequence(t.ids, t.types, want, version) for t in tokens]
        asker = Asker(client="shadow", source="shadow", bulk=True)
        answer = await runtime.engine.run(sequences, asker)
    except QueueFull:
        counted.labels(label, "skipped").inc()
        return
    except Exception as error:  # the client has its answer, and nobody else is to learn of this
        failed = {"version": digest, "name": chosen.name, "error": type(error).__name__}
        log.warning("shadow %(version)s of %(name)s: %(error)s", failed)
        counted.labels(label, "failed").inc(len(at))
        return
    rows = [answered.lines[k][i] for k, i in at]
    for row, shadowed in zip(rows, answer.rows, strict=True):
        result = "same" if same(row, shadowed, want.kind) else "different"
        counted.labels(label, result).inc()
    apart = distance(rows, answer.rows)
    if apart is not None:
        runtime.metrics.shadow_distance.labels(label).observe(apart)
