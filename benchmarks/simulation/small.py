"""A small case for real: two servers on SeaweedFS, sent the very traffic that was drawn for it, with
a proxy between that counts their requests to the bucket.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import obstore

from app.adapters.files import ADAPTER_FILES
from app.catalog.stored_names import WHOLE
from benchmarks.processes.loaded import random_adapter
from benchmarks.processes.replayed import Request, failures, replay
from benchmarks.processes.replicated import bucket, push, replicas
from benchmarks.simulation.replica import PUTS
from benchmarks.simulation.run import Result
from benchmarks.simulation.traffic import Case, Traffic
from tests.catalog.seaweed import BUCKET, Seaweed
from tests.catalog.unreliable import Unreliable
from tests.process import Process
from tests.tiny import save_tiny_base

BODY = b'{"inputs": "where is my card?"}'
SETTLE_S = 3.0
LOOK_EVERY_S = 0.01
SEEN_S = 30.0
MOVERS = 16  # PUTs that are waited for at the same time


def run(case: Case, traffic: Traffic) -> Result:
    """On a base of two small layers. The case's `resident` and `files` have to be the adapters'."""
    with tempfile.TemporaryDirectory() as base, bucket() as seaweed:
        save_tiny_base("bert", Path(base))
        prefix = seaweed.fresh_prefix()
        files = random_adapter(base, 0)
        assert len(case.files) == len(set(files) & set(ADAPTER_FILES))
        with replicas(1, seaweed, prefix, model=base) as (server,):
            for name in range(case.names):
                push(server, f"n{name}", random_adapter(base, name))
            size = server.client.get("/adapters/n0").json()["resident_bytes"]
        budget = int(size * (case.resident + 0.5))
        obstore.delete(seaweed.raw(prefix), "collector")  # that server's: else nobody is for 180 s
        with (
            Unreliable(seaweed.endpoint, BUCKET, prefix) as proxy,
            replicas(
                2, Seaweed(proxy.endpoint), prefix, model=base, adapter_memory_bytes=budget
            ) as servers,
        ):
            _until_quiet(proxy)
            return _sent(case, traffic, servers, proxy, base)


def _until_quiet(proxy: Unreliable) -> None:
    """Until a start's readings are over, the collector's first round among them."""
    before = -1
    while before != (before := sum(proxy.counts.values()) - proxy.counts["GET", "epoch"]):
        time.sleep(SETTLE_S)


def _sent(
    case: Case, traffic: Traffic, servers: list[Process], proxy: Unreliable, base: str
) -> Result:
    contents = [random_adapter(base, case.names + i) for i in range(len(traffic.moves))]
    loaded = sum(map(_loads, servers))
    proxy.counts.clear()
    began = time.monotonic()
    others = [servers[1], servers[0]] if case.names <= WHOLE else [None, None]
    with ThreadPoolExecutor(MOVERS) as movers:
        moving = [
            movers.submit(_move, began + at, servers[writer], others[writer], f"n{name}", files)
            for (at, name, writer), files in zip(traffic.moves, contents, strict=True)
        ]
        answers = replay(_due(traffic, servers))
        time.sleep(max(0.0, began + case.seconds - time.monotonic()))
        counts = proxy.counts.copy()
        late_s = [late for move in moving for late in move.result()]
    if failed := failures(answers):
        raise RuntimeError(f"{failed} requests failed")
    puts = len(traffic.moves)
    loads = sum(map(_loads, servers)) - loaded - puts
    cold = counts["GET", "versions"] - puts * PUTS["GET", "versions"]
    return Result(len(answers), counts, late_s, loads, cold)


def _due(traffic: Traffic, servers: list[Process]) -> Iterator[tuple[float, Request]]:
    columns = (traffic.at.tolist(), traffic.name.tolist(), traffic.replica.tolist())
    for at, name, replica in zip(*columns, strict=True):
        yield at, Request(f"{servers[replica].url}/embed?adapter=n{name}", BODY)


def _move(
    at: float, writer: Process, other: Process | None, name: str, files: dict[str, bytes]
) -> list[float]:
    """A PUT when it is due. Returns the seconds from its answer until the other server has it.

    other: None where nobody is to look there, which would make the name known.
    """
    time.sleep(max(0.0, at - time.monotonic()))
    answer = writer.client.put(f"/adapters/{name}", files=files)
    answer.raise_for_status()
    revision, moved = answer.json()["revision"], time.monotonic()
    if other is None:
        return []
    _until_seen(other.client, name, revision)
    return [time.monotonic() - moved]


def _until_seen(client: httpx.Client, name: str, revision: int) -> None:
    end = time.monotonic() + SEEN_S
    while time.monotonic() < end:
        if client.get(f"/adapters/{name}").json()["revision"] >= revision:
            return
        time.sleep(LOOK_EVERY_S)
    raise RuntimeError(f"{name} did not reach revision {revision} within {SEEN_S} s")


def _loads(server: Process) -> int:
    for line in httpx.get(f"{server.url}/metrics").text.splitlines():
        if line.startswith("bert_lora_adapter_load_seconds_count "):
            return int(float(line.split()[1]))
    raise RuntimeError("there is no such metric")
