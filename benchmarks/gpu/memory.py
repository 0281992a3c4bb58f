"""A thousand adapters on the card, what they take, and whether memory that ends comes back.

Then, last, an error that ends CUDA's context: the engine has to notice that its device is lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import torch

from app.engine.engine import Engine
from app.model.encoder import Encoder
from app.model.sequence import Sequence as Tokens
from app.model.version import Version
from benchmarks.gpu.card import Bench, dealt, drawn_version, encoder_of, in_turn, median, texts

SPARE_BYTES = 64 << 20  # above what is in use: too little for a batch of 512 texts


def measure(bench: Bench) -> None:
    logging.basicConfig(level=logging.WARNING)
    encoder = encoder_of(bench, "bert-base", "float16" if bench.on_card else "float32")
    before = allocated(bench)
    started = time.perf_counter()
    count = 20 if bench.small else 1000
    versions = [drawn_version(encoder, seed) for seed in range(count)]
    bench.wait()
    size = sum(v.adapter.resident_bytes for v in versions)
    found: dict[str, Any] = {"bytes": size, "made in s": round(time.perf_counter() - started, 2)}
    if bench.on_card:
        found["memory / bytes"] = round((allocated(bench) - before) / size, 4)
    all_ids = texts(4 if bench.small else 32)
    batches = {"first": dealt(all_ids, versions[:1]), "last": dealt(all_ids, versions[-1:])}
    runs = {name: (lambda b=batch: encoder.run(b)) for name, batch in batches.items()}
    found["ms"] = {name: median(times) for name, times in in_turn(bench, runs, 5).items()}  # type: ignore[arg-type]
    every = dealt(texts(count, 1), versions)
    found["ms"]["one text through each, once"] = median(
        in_turn(bench, {"every": lambda: encoder.run(every)}, 3)["every"]
    )
    bench.add(f"{count} adapters", found)
    if bench.on_card:
        bench.add("out of memory and back", out_and_back(encoder, versions))
        bench.add("a lost device", lost(encoder))


def allocated(bench: Bench) -> int:
    return torch.cuda.memory_allocated() if bench.on_card else 0


def out_and_back(encoder: Encoder, versions: list[Version]) -> dict[str, Any]:
    """512 texts while this process may take hardly more than it has; then without that limit."""
    engine = Engine(encoder, 16_384, None)
    engine.start()
    sequences = dealt(texts(512), versions[:64])
    wanted = rows(engine, sequences)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + SPARE_BYTES) / total)
    short = rows(engine, dealt(texts(512), versions[:64]))
    budget = engine.max_batch_tokens
    torch.cuda.set_per_process_memory_fraction(1.0)
    after = rows(engine, dealt(texts(512), versions[:64]))
    engine.stop()
    return {
        "max_batch_tokens, before and after": [16_384, budget],
        "short of memory": told(short, wanted),
        "afterwards": told(after, wanted),
    }


def rows(engine: Engine, sequences: list[Tokens]) -> list[torch.Tensor] | str:
    async def run() -> list[torch.Tensor]:
        return (await engine.run(sequences)).rows

    try:
        return asyncio.run(run())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def told(found: list[torch.Tensor] | str, wanted: list[torch.Tensor] | str) -> str:
    if isinstance(found, str) or isinstance(wanted, str):
        return f"failed: {found if isinstance(found, str) else wanted}"
    off = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
    return f"{len(found)} answers, off by {off:.1e} at most"


def lost(encoder: Encoder) -> dict[str, Any]:
    """A token that the table does not have fails an assertion on the card, which ends the context."""
    engine = Engine(encoder, 16_384, None)
    engine.start()
    beyond = dealt([[encoder.vocabulary + 5] * 8], [encoder.version])
    first = rows(engine, beyond)
    second = rows(engine, dealt(texts(2), [encoder.version]))
    return {"engine.lost": engine.lost, "the culprit": str(first), "the next": str(second)}
