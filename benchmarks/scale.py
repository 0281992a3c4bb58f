"""Two servers on one bucket behind HAProxy beside one alone: what a request costs more.

    python -m benchmarks.scale [--rounds 3] [--seconds 5]
    python -m benchmarks.scale --stage affinity [--adapters 400] [--resident 60] [--rate 20]

On two cores two servers are no faster than one: it is the overhead that is measured. CPU is that of
the servers and of HAProxy, by /proc; SeaweedFS and this process, which sends the load, are not
counted and share the cores. CPU a request: 16 clients that ask without a pause. Latencies: a steady
rate, from when a request was due.

--stage affinity: a Zipf load over more adapters than fit into either server's memory, by round robin
and by consistent hashing of the adapter's name. The last line is one JSON object with the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson

from benchmarks.load.arrivals import made_texts
from benchmarks.load.percentiles import spread
from benchmarks.processes.loaded import last_line, random_adapter
from benchmarks.processes.replayed import Request, closed_loop, failures, replay
from benchmarks.processes.replicated import (
    Balance,
    CpuTaken,
    balancer,
    bucket,
    push,
    replicas,
    rss_mb,
)
from benchmarks.simulation.traffic import zipf
from tests.process import Process

ROOT = Path(__file__).parent.parent
CLIENTS = 16
RATES = {"/livez": 100.0, "/classify": 10.0}  # a second: far from what either way can do
SETTLE_S = 2.0
WARMUP_S = 20.0
COUNTERS = ("misses", "hits", "evictions")
BALANCES: tuple[Balance, ...] = ("round robin", "hash, bounded", "hash")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=["overhead", "affinity"], default="overhead")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--adapters", type=int, default=400)
    parser.add_argument("--resident", type=int, default=60)
    parser.add_argument("--rate", type=float, default=20)
    args = parser.parse_args()
    if args.stage == "affinity":
        _affinity(args.adapters, args.resident, args.rate, args.seconds)
    else:
        _overhead(args.rounds, args.seconds)


def _overhead(rounds: int, seconds: float) -> None:
    with bucket() as seaweed, replicas(2, seaweed, seaweed.fresh_prefix()) as servers:
        push(servers[0], "sentiment", _shipped("sentiment"))
        time.sleep(SETTLE_S)  # until the other one has seen it
        with CpuTaken([s.child.pid for s in servers]) as idle:
            time.sleep(10)
        with balancer(servers[:1]) as before_one, balancer(servers) as before_two:
            alone, both = [servers[0].child.pid], [s.child.pid for s in servers]
            ways = {
                "one": (servers[0].url, alone),
                "HAProxy, one": (before_one.url, [*alone, before_one.pid]),
                "HAProxy, two": (before_two.url, [*both, before_two.pid]),
            }
            found = _rounds(ways, rounds, seconds)
    idle_ms = 1000 * idle.seconds / idle.wall_s / len(servers)
    print(f"an idle server: {idle_ms:.1f} ms of CPU a second")
    print(
        f"{'':14}{'':11}{'CPU ms':>8}{'s/million':>11}{'answers/s':>11}{'p50 ms':>9}{'p99 ms':>9}"
    )
    for way, paths in found.items():
        for path, row in paths.items():
            print(
                f"{way:14}{path:11}{row['cpu_ms']:8.2f}{1000 * row['cpu_ms']:11,.0f}"
                f"{row['answers_per_s']:11.0f}{row['p50']:9.1f}{row['p99']:9.1f}"
            )
    command = f"python -m benchmarks.scale --rounds {rounds} --seconds {seconds:g}"
    print(last_line(command, idle_cpu_ms_per_s=round(idle_ms, 2), runs_by_way=found))


def _rounds(
    ways: dict[str, tuple[str, list[int]]], rounds: int, seconds: float
) -> dict[str, dict[str, dict[str, float]]]:
    """Every way in turn, so that what else the machine does hits all alike; the medians."""
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for way, (url, pids) in ways.items():
            for path in RATES:
                rows.setdefault((way, path), []).append(_measured(url, path, pids, seconds))
    found: dict[str, dict[str, dict[str, float]]] = {way: {} for way in ways}
    for (way, path), each in rows.items():
        found[way][path] = {n: round(statistics.median(r[n] for r in each), 3) for n in each[0]}
    return found


def _measured(url: str, path: str, pids: list[int], seconds: float) -> dict[str, float]:
    asked = _asking(url, path)
    closed_loop(asked, CLIENTS, 0.5)  # connections, threads
    with CpuTaken(pids) as cpu:
        answers = closed_loop(asked, CLIENTS, seconds)
    steady = replay((n / RATES[path], asked()) for n in range(int(RATES[path] * seconds)))
    if failed := failures(answers) + failures(steady):
        raise RuntimeError(f"{failed} of {path} failed")
    ms = spread(answer.seconds for answer in steady)
    return {
        "cpu_ms": 1000 * cpu.seconds / len(answers),
        "answers_per_s": len(answers) / cpu.wall_s,
        "p50": ms["p50"],
        "p99": ms["p99"],
    }


def _asking(url: str, path: str) -> Callable[[], Request]:
    if path == "/livez":
        return lambda: Request(url + path)
    texts, number = made_texts(0), count()
    address = f"{url}{path}?adapter=sentiment"
    return lambda: Request(address, orjson.dumps({"inputs": texts[next(number) % len(texts)]}))


def _shipped(name: str) -> dict[str, bytes]:
    """An adapter's files as they lie in adapters/."""
    folder = ROOT / "adapters" / name
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def _affinity(adapters: int, resident: int, rate: float, seconds: float) -> None:
    with bucket() as seaweed:
        prefix = seaweed.fresh_prefix()
        with replicas(1, seaweed, prefix) as (server,):
            for i in range(adapters):
                push(server, f"a{i}", random_adapter(None, i))
            size = server.client.get("/adapters/a0").json()["resident_bytes"]
        found = {}
        for balance in BALANCES:
            budget = int(size * (resident + 0.5))
            with (
                replicas(2, seaweed, prefix, adapter_memory_bytes=budget) as servers,
                balancer(servers, balance) as before,
            ):
                url, pid = before.url, before.pid
                replay(_zipf_load(url, adapters, rate, WARMUP_S, seed=1))
                found[balance] = _loaded(
                    servers, pid, _zipf_load(url, adapters, rate, seconds, seed=2), seconds
                )
    columns = next(iter(found.values()))
    print(f"{'':14}" + "".join(f"{name:>16}" for name in columns))
    for balance, row in found.items():
        print(f"{balance:14}" + "".join(f"{value:16.2f}" for value in row.values()))
    command = "python -m benchmarks.scale --stage affinity"
    command += f" --adapters {adapters} --resident {resident} --rate {rate:g} --seconds {seconds:g}"
    print(last_line(command, bytes_each=size, runs_by_balance=found))


def _zipf_load(
    url: str, adapters: int, rate: float, seconds: float, seed: int
) -> Iterator[tuple[float, Request]]:
    rng, texts = np.random.default_rng(seed), made_texts(seed)
    at = np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds))).tolist()
    names = rng.choice(adapters, len(at), p=zipf(adapters, 1.0)).tolist()
    for i, (due, name) in enumerate(zip(at, names, strict=True)):
        body = json.dumps({"inputs": texts[i % len(texts)]}).encode()
        yield due, Request(f"{url}/embed?adapter=a{name}", body)


def _loaded(
    servers: list[Process], balancer_pid: int, load: Iterator[tuple[float, Request]], seconds: float
) -> dict[str, float]:
    before = _counted(servers)
    pids = [server.child.pid for server in servers]
    with CpuTaken([*pids, balancer_pid]) as cpu:
        answers = replay(load)
    if failed := failures(answers):
        raise RuntimeError(f"{failed} requests failed")
    ms = spread(answer.seconds for answer in answers)
    rates = {
        f"{name}/s": (after - before[name]) / seconds for name, after in _counted(servers).items()
    }
    found: dict[str, Any] = {
        **rates,
        "p50 ms": ms["p50"],
        "p99 ms": ms["p99"],
        "CPU ms/request": 1000 * cpu.seconds / len(answers),
        "RSS MB, mean": statistics.mean(map(rss_mb, pids)),
    }
    return {name: round(value, 2) for name, value in found.items()}


def _counted(servers: list[Process]) -> dict[str, float]:
    texts = [httpx.get(f"{server.url}/metrics").text for server in servers]
    return {
        name: sum(_metric(text, f"bert_lora_adapter_{name}_total") for text in texts)
        for name in COUNTERS
    }


def _metric(text: str, name: str) -> float:
    return next(float(x.split()[1]) for x in text.splitlines() if x.startswith(f"{name} "))


if __name__ == "__main__":
    main()
