"""A start on a bucket with 100,000 names beside one on an empty bucket, and what a server then keeps.

    python -m benchmarks.bucket_names [--names 100000] [--asked 500] [--starts 3]

A SeaweedFS on loopback; the names share one version of MiniLM's size. Seconds until /readyz answers,
by the clock and of CPU; memory then, after so many names were asked for, and of the server that
collects, which reads every name.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import obstore
import orjson

from app.catalog.object_names import FOLDER, to_bytes
from app.catalog.pointer import from_json
from benchmarks.processes.loaded import last_line, metric, random_adapter
from benchmarks.processes.replicated import bucket, push, replicas
from tests.catalog.seaweed import Seaweed

WRITERS = 16
COLLECTED_S = 90.0  # a round of the collector over all names is over by then


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=int, default=100_000)
    parser.add_argument("--asked", type=int, default=500)
    parser.add_argument("--starts", type=int, default=3)
    args = parser.parse_args()
    with bucket() as seaweed:
        empty, full = seaweed.fresh_prefix(), seaweed.fresh_prefix()
        _fill(seaweed, full, args.names)
        collecting = _started(seaweed, full, 0, wait_s=COLLECTED_S)
        both = [
            (_started(seaweed, empty, 0), _started(seaweed, full, args.asked))
            for _ in range(args.starts)
        ]
    for what, starts in zip(
        ("an empty bucket", f"{args.names:,} names"), zip(*both, strict=True), strict=True
    ):
        wall, cpu, mb, then = (
            statistics.median(one[of] for one in starts)
            for of in ("wall_s", "cpu_s", "mb", "mb_then")
        )
        print(f"{what}: {wall:.1f} s, {cpu:.1f} s of CPU, {mb:.0f} MB, then {then:.0f} MB")
    print(f"the one that collects: {collecting['mb_then']:.0f} MB")
    command = f"python -m benchmarks.bucket_names --names {args.names} --asked {args.asked}"
    print(last_line(command, both=both, collecting=collecting))


def _fill(seaweed: Seaweed, prefix: str, names: int) -> None:
    with replicas(1, seaweed, prefix) as (server,):
        push(server, _name(0), random_adapter(None, 0))
    raw = seaweed.raw(prefix)
    obstore.delete(raw, "collector")  # that server's: else nobody collects for 180 s
    body = obstore.get(raw, FOLDER + _name(0)).bytes()
    first = from_json(
        _name(0), {k: v for k, v in orjson.loads(bytes(body)).items() if k != "writer"}
    )

    def write(i: int) -> None:
        obstore.put(raw, FOLDER + _name(i), to_bytes(replace(first, name=_name(i)), "benchmark"))

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(1, names)))


def _name(i: int) -> str:
    return f"n{i:06d}"


def _started(seaweed: Seaweed, prefix: str, asked: int, wait_s: float = 0.0) -> dict[str, float]:
    began = time.perf_counter()
    with replicas(1, seaweed, prefix) as (server,):
        wall_s, client = time.perf_counter() - began, server.client
        cpu_s, mb = metric(client, "process_cpu_seconds_total"), _mb(client)
        for i in range(asked):
            client.post(f"/embed?adapter={_name(i)}", json={"inputs": "x"}).raise_for_status()
        time.sleep(wait_s)
        return {"wall_s": wall_s, "cpu_s": cpu_s, "mb": mb, "mb_then": _mb(client)}


def _mb(client: httpx.Client) -> float:
    return metric(client, "process_resident_memory_bytes") / 1e6


if __name__ == "__main__":
    main()
