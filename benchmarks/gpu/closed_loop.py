"""Clients that ask again as soon as they are answered, in a process of their own.

    python -m benchmarks.gpu.closed_loop URL JSON    {"clients", "seconds", "inputs", "adapters"}

Prints one JSON object: requests and texts a second, and percentiles. Knows no server of ours.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

import aiohttp
import orjson

from benchmarks.load.arrivals import made_texts

WARMUP_S = 0.5


async def ask(
    url: str, plan: dict[str, Any], seed: int, over: float, done: list[tuple[float, float]]
) -> int:
    rng, failed = random.Random(seed), 0
    texts = made_texts(seed)
    async with aiohttp.ClientSession() as session:
        while time.perf_counter() < over:
            body: dict[str, Any] = {"inputs": rng.sample(texts, plan["inputs"])}
            if plan["adapters"]:
                body["adapters"] = rng.choices(plan["adapters"], k=plan["inputs"])
            content, started = orjson.dumps(body), time.perf_counter()
            headers = {"Content-Type": "application/json"}
            async with session.post(f"{url}/embed", data=content, headers=headers) as answer:
                await answer.read()
                failed += answer.status != 200
            done.append((started, time.perf_counter()))
    return failed


async def load(url: str, plan: dict[str, Any]) -> dict[str, Any]:
    begun = time.perf_counter()
    over = begun + WARMUP_S + plan["seconds"]
    done: list[tuple[float, float]] = []
    clients = [ask(url, plan, seed, over, done) for seed in range(plan["clients"])]
    failed = sum(await asyncio.gather(*clients))
    counted = sorted(1000 * (b - a) for a, b in done if a >= begun + WARMUP_S)
    rate = len(counted) / plan["seconds"]
    at = {f"p{p}": round(counted[int(p / 100 * (len(counted) - 1))], 2) for p in (50, 90, 99)}
    return {
        "requests/s": round(rate, 1), "texts/s": round(rate * plan["inputs"], 1), "ms": at, "failed": failed,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(sys.argv[1], json.loads(sys.argv[2])))))
