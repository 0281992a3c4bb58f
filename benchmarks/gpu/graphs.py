"""CUDA graphs: what they cost at start, and whether a replay ever answers otherwise.

Drawn batches of all sizes through adapters that come and go: the graph's hidden states beside those
of the same padded batch launched kernel by kernel, and of the batch without padding.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from typing import Any

import torch

from app.engine.engine import Engine
from app.model.batch import Batch
from app.model.encoder import Encoder
from app.model.graphs import TOKENS
from app.model.load_encoder import add_graphs
from app.model.sequence import Sequence, Want
from app.model.version import Version
from benchmarks.gpu.card import Bench, drawn_version, encoder_of

BATCHES = 100
RANKS = (1, 8, 16, 64, 256)
CLIENTS, SWAPS = 24, 60


def measure(bench: Bench) -> None:
    for name in ("bert-base", "minilm"):
        for dtype in ("float32", "bfloat16", "float16"):
            if bench.late:
                return
            encoder = encoder_of(bench, name, dtype)
            if bench.on_card:
                bench.add(f"{name}/{dtype}", {**cost(bench, encoder), **compared(bench, encoder)})
                bench.add(f"{name}/{dtype}/swaps under traffic", asyncio.run(traffic(encoder)))


def cost(bench: Bench, encoder: Encoder) -> dict[str, Any]:
    encoder.graphs = None
    torch.cuda.empty_cache()
    before, started = torch.cuda.memory_reserved(), time.perf_counter()
    add_graphs(encoder)
    bench.wait()
    return {
        "slow_paths": dict(encoder.slow_paths),
        "buckets": len(encoder.graphs.buckets) if encoder.graphs else 0,
        "start_s": round(time.perf_counter() - started, 2),
        "MB": (torch.cuda.memory_reserved() - before) >> 20,
    }


@torch.inference_mode()
def compared(bench: Bench, encoder: Encoder) -> dict[str, Any]:
    rng = random.Random(0)
    plain = replace(encoder, graphs=None)
    alive: list[Version] = []
    bits, served, off, off_padded = 0, 0, 0.0, 0.0
    for i in range(4 if bench.small else BATCHES):
        alive = [*alive[-7:], drawn_version(encoder, i, RANKS[i % len(RANKS)])]  # the eighth goes
        batch = drawn(encoder, rng, [encoder.version, *alive])
        replayed = encoder.graphs.run(batch) if encoder.graphs else None
        if replayed is None:
            continue
        served += 1
        launched = encoder.launch(batch)
        unpadded = plain.launch(plain.pack(batch.sequences))
        bits += torch.equal(replayed, launched)
        off = max(off, apart(replayed, launched))
        off_padded = max(off_padded, apart(replayed, unpadded))
    return {
        "batches": served, "the same bits": bits, "worst relative": float(f"{off:.2e}"),
        "worst relative, unpadded": float(f"{off_padded:.2e}"),
    }  # fmt: skip


def drawn(encoder: Encoder, rng: random.Random, through: list[Version]) -> Batch:
    tokens, count = rng.choice(TOKENS) - rng.randrange(30), rng.randint(1, 40)
    some = rng.sample(through, rng.randint(1, len(through)))
    sequences = []
    mean = tokens / count
    while tokens > 0 and len(sequences) < count:
        length = min(tokens, encoder.max_length, 1 + int(rng.expovariate(1 / mean)))
        tokens -= length
        ids = [rng.randrange(encoder.vocabulary) for _ in range(length)]
        sequences.append(Sequence(ids, [0] * length, Want("states"), rng.choice(some)))
    return encoder.pack(sequences, encoder.graphs.buckets if encoder.graphs else ())


async def traffic(encoder: Encoder) -> dict[str, Any]:
    """Clients in a closed loop through adapters that are made and dropped beside them; some of the
    answers against the same texts launched alone."""
    engine, rng = Engine(encoder, 16_384, None), random.Random(0)
    engine.start()
    through, asked = [encoder.version], 0
    kept: list[tuple[Sequence, torch.Tensor]] = []
    over = asyncio.Event()

    async def ask() -> None:
        nonlocal asked
        while not over.is_set():
            made = [drawn_text(encoder, rng, rng.choice(through)) for _ in range(rng.randint(1, 6))]
            rows = (await engine.run(made)).rows
            asked += 1
            if asked % 50 == 1:
                kept.append((made[-1], rows[-1]))

    clients = [asyncio.create_task(ask()) for _ in range(CLIENTS)]
    for i in range(SWAPS):
        version = await asyncio.to_thread(drawn_version, encoder, 1000 + i, RANKS[i % len(RANKS)])
        through[1:] = [*through[-7:], version][-7:]
        await asyncio.sleep(0.02)
    over.set()
    await asyncio.gather(*clients)
    await asyncio.to_thread(engine.stop)
    plain = replace(encoder, graphs=None)
    off = max(apart(row, plain.run([text])[0]) for text, row in kept)
    return {"asked": asked, "compared": len(kept), "worst relative": float(f"{off:.2e}")}


def drawn_text(encoder: Encoder, rng: random.Random, version: Version) -> Sequence:
    ids = [rng.randrange(encoder.vocabulary) for _ in range(rng.randint(3, 60))]
    return Sequence(ids, [0] * len(ids), Want("states"), version)


def apart(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest relative distance of a token's state; NaN counts as infinite."""
    off = (got.double() - wanted.double()).norm(dim=1) / wanted.double().norm(dim=1)
    return float(torch.nan_to_num(off.max(), nan=float("inf")))
