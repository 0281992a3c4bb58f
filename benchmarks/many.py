"""A thousand adapters: what they take in memory, how fast the last one is, how long a start takes.

    python -m benchmarks.many [--count 1000] [--model FOLDER] [--store FOLDER] [--memory BYTES]

Rank 8 on every Linear. With --store what was put there before is used again. With --memory no more
than that stays resident, and `from the store` is the first request of an adapter that is not.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.processes.loaded import last_line, metric, our_server, put, random_adapter

TEXT = {"inputs": "hello there my friend, what is new today?"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--model")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--memory", help="the server's --adapter-memory-bytes")
    args = parser.parse_args()
    model = ["--model", args.model] if args.model else []
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as fresh:
        store = args.store or Path(fresh)
        option = ["--adapters-dir", "/none", *model]
        option += ["--adapter-memory-bytes", args.memory] if args.memory else []
        started = time.perf_counter()
        with our_server(Path(empty), *option) as client:
            base_start_s, base_rss = time.perf_counter() - started, _rss(client)
        with our_server(store, *option) as client:
            for i in range(len(client.get("/adapters").json()), args.count):
                put(client, f"a{i}", random_adapter(args.model, i))
        started = time.perf_counter()
        with our_server(store, *option) as client:
            start_s = time.perf_counter() - started
            bytes_ = _loaded_bytes(client)
            ratio = (_rss(client) - base_rss) / bytes_
            ms = {n: _ask(client, n) for n in ("base", "a0", f"a{args.count - 1}")}
            if args.memory:
                ms["from the store"] = _ask_absent(client)
            started = time.perf_counter()
            client.get("/adapters")
            list_ms = 1000 * (time.perf_counter() - started)
            started = time.perf_counter()
            client.post("/embed?adapter=nobody", json=TEXT)
            unknown_ms = 1000 * (time.perf_counter() - started)
    beyond = round(start_s - base_start_s, 1)
    print(
        f"start: {beyond} s beyond the base's own; memory: {ratio:.3f} of their {bytes_:,.0f} bytes"
    )
    print(f"p50 of one text, ms: {ms}; GET /adapters {list_ms:.0f} ms; a 404 {unknown_ms:.0f} ms")
    ratios = {
        "memory / the adapters' bytes": round(ratio, 3),
        "last adapter / first": round(ms[f"a{args.count - 1}"] / ms["a0"], 3),
    }
    command = f"python -m benchmarks.many --count {args.count}"
    command += " --model bert-base" if args.model else ""
    command += f" --memory {args.memory}" if args.memory else ""
    more = {"GET /adapters ms": round(list_ms), "404 ms": round(unknown_ms)}
    print(last_line(command, start_beyond_base_s=beyond, ratios=ratios, ms=ms, more=more))


def _loaded_bytes(client: httpx.Client) -> float:
    """Of what is resident once nothing more is loaded in the background."""
    before, now = -1.0, 0.0
    while now > before:
        time.sleep(3)
        before, now = now, metric(client, "bert_lora_resident_bytes")
    return now


def _ask(client: httpx.Client, name: str) -> float:
    return _median_ms(client, [name] * 40)


def _ask_absent(client: httpx.Client) -> float:
    absent = [str(a["name"]) for a in client.get("/adapters").json() if not a["resident"]]
    return _median_ms(client, absent[:: max(len(absent) // 40, 1)])


def _median_ms(client: httpx.Client, names: list[str]) -> float:
    times = []
    for name in names:
        started = time.perf_counter()
        client.post(f"/embed?adapter={name}", json=TEXT).raise_for_status()
        times.append(1000 * (time.perf_counter() - started))
    return round(statistics.median(times), 2)


def _rss(client: httpx.Client) -> int:
    """Of the process that listens; Linux."""
    return int(metric(client, "process_resident_memory_bytes"))


if __name__ == "__main__":
    main()
