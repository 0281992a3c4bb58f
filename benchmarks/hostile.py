"""What each hostile upload costs a running server: seconds, and memory beyond the upload's own size.

    python -m benchmarks.hostile

Starts a server of the embedded base in a process of its own, sends every upload of
tests/adapters/hostile.py, and reads the process's peak resident memory (Linux: VmHWM) after each.
The last line is one JSON with the worst of both.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests.adapters.hostile import UPLOADS

START_S = 120


def main() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as store:
        environment = os.environ | {
            "BERT_LORA_PORT": str(port), "BERT_LORA_STORE": store, "BERT_LORA_ADAPTERS_DIR": f"{store}/none",
        }  # fmt: skip
        server = subprocess.Popen([sys.executable, "-m", "app.cli", "serve"], env=environment)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                _wait(client)
                _measure(client, server.pid)
        finally:
            server.terminate()
            server.wait()


def _wait(client: httpx.Client) -> None:
    ends = time.monotonic() + START_S
    while time.monotonic() < ends:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise TimeoutError("the server did not start")


def _measure(client: httpx.Client, pid: int) -> None:
    rows = []
    client.put("/adapters/x", content=b"warm")
    for name, body in UPLOADS.items():
        before = _reset_peak(pid)
        started = time.perf_counter()
        answer = client.put("/adapters/x?alpha=16", content=body)
        took_s = time.perf_counter() - started
        beyond = max(0, _status(pid, "VmHWM") - before - len(body))
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


def _reset_peak(pid: int) -> int:
    """The resident bytes now; the peak starts from here."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _status(pid, "VmRSS")


def _status(pid: int, field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
