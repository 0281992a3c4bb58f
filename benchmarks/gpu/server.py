"""Over HTTP on the card: clients in a closed loop, and adapters that change under their load.

The server, the clients and the card share one machine; clients run in a process of their own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from benchmarks.gpu.card import Bench
from benchmarks.processes.loaded import our_server, put, random_adapter

NAMES = [f"a{i}" for i in range(16)]
PLANS: dict[str, dict[str, Any]] = {
    "1 client, 1 text, base": {"clients": 1, "inputs": 1, "adapters": []},
    "1 client, 1 text, 16 adapters": {"clients": 1, "inputs": 1, "adapters": NAMES},
    "32 clients, 1 text, base": {"clients": 32, "inputs": 1, "adapters": []},
    "32 clients, 1 text, 16 adapters": {"clients": 32, "inputs": 1, "adapters": NAMES},
    "8 clients, 64 texts, base": {"clients": 8, "inputs": 64, "adapters": []},
    "8 clients, 64 texts, 16 adapters": {"clients": 8, "inputs": 64, "adapters": NAMES},
}
SWAPS_A_SECOND = 5


def measure(bench: Bench) -> None:
    for dtype in ("float32",) if bench.small else ("float32", "bfloat16"):
        if bench.late:
            return
        with tempfile.TemporaryDirectory() as store:
            option = ["--dtype", dtype, "--adapters-dir", "/none"]
            started = time.perf_counter()
            with our_server(
                Path(store), *option, device=bench.device.type, module="benchmarks.gpu.serve"
            ) as client:
                bench.add(f"{dtype}/start_s", round(time.perf_counter() - started, 1))
                asked(bench, dtype, client)


def asked(bench: Bench, dtype: str, client: httpx.Client) -> None:
    info = client.get("/info").json()
    bench.add(f"{dtype}/slow_paths", info["slow_paths"])
    contents = [random_adapter(None, seed) for seed in range(len(NAMES))]
    put_ms = [
        timed(lambda n=n, c=c: put(client, n, c)) for n, c in zip(NAMES, contents, strict=True)
    ]  # type: ignore[misc]
    bench.add(f"{dtype}/PUT alone, ms", round(statistics.median(put_ms), 1))
    url = str(client.base_url).rstrip("/")
    seconds = 1 if bench.small else 2
    plans = dict(list(PLANS.items())[1::4]) if bench.small else PLANS
    for name, plan in plans.items():
        bench.add(f"{dtype}/{name}", said(url, {**plan, "seconds": seconds}))
    plan = {**PLANS["32 clients, 1 text, 16 adapters"], "seconds": seconds}
    over = threading.Event()
    swaps: list[float] = []
    swapping = threading.Thread(target=swap, args=(url, contents, over, swaps))
    swapping.start()
    beside = said(url, plan)
    over.set()
    swapping.join()
    first = {
        "p50": round(statistics.median(swaps), 1),
        "most": round(max(swaps), 1),
        "each, in order": [round(ms, 1) for ms in swaps],
    }
    bench.add(
        f"{dtype}/PUT under traffic", {"PUT to first answer, ms": first, "the others": beside}
    )


def swap(
    url: str, contents: list[dict[str, bytes]], over: threading.Event, ms: list[float]
) -> None:
    """Names replaced in turn, each asked at once."""
    with httpx.Client(base_url=url, timeout=60) as client:
        i = 0
        while not over.is_set() or not ms:
            name, content = f"swapped{i % 5}", contents[i % len(contents)]

            def both(name: str = name, content: dict[str, bytes] = content) -> None:
                put(client, name, content)
                client.post(f"/embed?adapter={name}", json={"inputs": "hello"}).raise_for_status()

            ms.append(timed(both))
            i += 1
            over.wait(1 / SWAPS_A_SECOND)


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - started)


def said(url: str, plan: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu.closed_loop", url, json.dumps(plan)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    return dict(json.loads(done.stdout))
