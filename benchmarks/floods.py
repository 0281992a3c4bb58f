"""What a flood in a body costs its neighbours: how much longer /livez waits, seconds, and memory.

    python -m benchmarks.floods

Sends every body of tests/api/floods.py (15.9 MB each) to a server of the embedded base in a process
of its own, five times, while another process asks /livez without a pause. The wait is the longest
of all, beyond the longest of an idle second before; memory is the peak beyond what was resident
before, as a multiple of the body.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import time
from multiprocessing.synchronize import Event

import httpx

from benchmarks.processes.own import own_server, peak, reset_peak
from tests.api.floods import FLOODS

# A forward of 1,000 whole texts is what was asked for, and takes a minute: it is given up.
HEADERS = {"Content-Type": "application/json", "X-Request-Timeout": "3"}
IDLE_S, TIMES = 1.0, 5


def main() -> None:
    rows = []
    with own_server() as (client, pid):
        client.post("/embed", json={"inputs": ["warm"] * 64})
        for name, (path, body) in FLOODS.items():
            rows.append(_measured(client, pid, name, path, body))
    print(
        json.dumps(
            {
                "floods": len(rows),
                "longest_wait_ms": max(rows)[0],
                "slowest_s": max(row[1] for row in rows),
                "most_memory": max(row[2] for row in rows),
                "largest_refusal": max(row[3] for row in rows),
                "machine": platform.processor() or platform.machine(),
            }
        )
    )


def _measured(
    client: httpx.Client, pid: int, name: str, path: str, body: bytes
) -> tuple[float, float, float, int]:
    idle = _wait_ms(client, lambda: time.sleep(IDLE_S))
    before, status, refusal, took = reset_peak(pid), 0, 0, 0.0

    def flood() -> None:
        nonlocal status, refusal, took
        for _ in range(TIMES):
            began = time.perf_counter()
            answer = client.post(path, content=body, headers=HEADERS)
            took = max(took, time.perf_counter() - began)
            status = answer.status_code
            refusal = len(answer.content) if status >= 400 else 0

    beside = _wait_ms(client, flood)
    memory = (peak(pid) - before) / len(body)
    longer = round(beside - idle, 1)
    print(
        f"{longer:7.1f} ms {took:6.2f} s {memory:5.2f} x  {status} {refusal:6}  {name}", flush=True
    )
    return longer, round(took, 2), round(memory, 2), refusal


def _wait_ms(client: httpx.Client, meanwhile: object) -> float:
    """The longest that /livez took meanwhile."""
    stop, longest = multiprocessing.Event(), multiprocessing.Value("d", 0.0)
    neighbour = multiprocessing.Process(target=_ask, args=(str(client.base_url), stop, longest))
    neighbour.start()
    time.sleep(0.3)  # for it to begin
    with longest.get_lock():
        longest.value = 0.0
    meanwhile()  # type: ignore[operator]
    stop.set()
    neighbour.join()
    return 1000 * longest.value


def _ask(url: str, stop: Event, longest: object) -> None:
    with httpx.Client(base_url=url) as client:
        while not stop.is_set():
            began = time.perf_counter()
            client.get("/livez")
            took = time.perf_counter() - began
            longest.value = max(longest.value, took)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
