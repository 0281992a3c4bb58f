"""What each hostile upload costs a running server: seconds, and memory beyond the upload's own
size.

    python -m benchmarks.hostile

Starts a server of the embedded base in a process of its own, sends every upload of
tests/adapters/hostile.py, and reads the process's peak resident memory (Linux: VmHWM) after each.
The last line is one JSON with the worst of both.
"""

from __future__ import annotations

import json
import platform
import time

import httpx

from benchmarks.processes.own import own_server, peak, reset_peak
from tests.adapters.hostile import UPLOADS


def main() -> None:
    with own_server() as (client, pid):
        _measure(client, pid)


def _measure(client: httpx.Client, pid: int) -> None:
    rows = []
    client.put("/adapters/x", content=b"warm")
    for name, body in UPLOADS.items():
        before = reset_peak(pid)
        started = time.perf_counter()
        answer = client.put("/adapters/x?alpha=16", content=body)
        took_s = time.perf_counter() - started
        beyond = max(0, peak(pid) - before - len(body))
        rows.append((took_s, beyond, name, answer.status_code))
        print(f"{took_s:7.3f} s {beyond / 1e6:8.1f} MB  {answer.status_code}  {name}")
    slowest, largest = max(rows), max(rows, key=lambda row: row[1])
    print(
        json.dumps(
            {
                "uploads": len(rows),
                "refused": sum(400 <= row[3] < 500 for row in rows),
                "slowest": {"s": round(slowest[0], 3), "upload": slowest[2]},
                "most_memory": {"mb": round(largest[1] / 1e6, 1), "upload": largest[2]},
                "machine": platform.processor() or platform.machine(),
                "python": platform.python_version(),
            }
        )
    )


if __name__ == "__main__":
    main()
