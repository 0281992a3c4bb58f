"""How long from PUT to the first answer, and what ten swaps a second do to everybody else.

    python -m benchmarks.swap [--model FOLDER] [--rate 25] [--swaps 10] [--seconds 20]

Rank 8 on every Linear; five names are replaced in turn while another adapter's requests go on.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path

import httpx

from benchmarks.processes.loaded import (
    bench,
    last_line,
    our_server,
    put,
    random_adapter,
    said,
)

TEXT = {"inputs": "hello there my friend, what is new today?"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--rate", type=float, default=25)
    parser.add_argument("--swaps", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args()
    contents = [random_adapter(args.model, seed) for seed in range(12)]
    model = ["--model", args.model, "--adapters-dir", "/none"] if args.model else []
    load = ["--adapter", "other", "--rate", str(args.rate), "--seconds", str(args.seconds)]
    with tempfile.TemporaryDirectory() as store, our_server(Path(store), *model) as client:
        put(client, "other", random_adapter(args.model, 99))
        said(bench(client, *load))  # warm
        alone = said(bench(client, *load))["latency_ms"]
        first_ms: list[float] = []
        over = threading.Event()
        swapping = threading.Thread(
            target=_swap, args=(str(client.base_url), contents, args.swaps, over, first_ms)
        )
        swapping.start()
        beside = said(bench(client, *load))["latency_ms"]
        over.set()
        swapping.join()
    first_ms.sort()
    p90 = first_ms[int(0.9 * len(first_ms))]
    ratio = round(beside["p99"] / alone["p99"], 2)
    p50 = statistics.median(first_ms)
    print(f"PUT to first answer: p50 {p50:.0f} ms, p90 {p90:.0f} ms, {len(first_ms)} swaps")
    print(f"others' p99: {alone['p99']:.0f} ms alone, {beside['p99']:.0f} ms beside: {ratio}")
    command = f"python -m benchmarks.swap --rate {args.rate:g} --swaps {args.swaps:g}"
    print(
        last_line(
            command + (" --model bert-base" if args.model else ""),
            put_to_first_answer_ms={"p50": round(p50, 1), "p90": round(p90, 1)},
            ratios={"others' p99 beside swaps / alone": ratio},
        )
    )


def _swap(
    url: str, contents: list[dict[str, bytes]], rate: float, over: threading.Event, ms: list[float]
) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        begun, i = time.perf_counter(), 0
        while not over.is_set():
            time.sleep(max(0.0, begun + i / rate - time.perf_counter()))
            started = time.perf_counter()
            put(client, f"swapped{i % 5}", contents[i % len(contents)])
            client.post(f"/embed?adapter=swapped{i % 5}", json=TEXT).raise_for_status()
            ms.append(1000 * (time.perf_counter() - started))
            i += 1


if __name__ == "__main__":
    main()
