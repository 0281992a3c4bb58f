"""A server of our own in a process of its own, with its memory looked at from outside (Linux)."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

START_S = 120


@contextmanager
def own_server(**settings: object) -> Iterator[tuple[httpx.Client, int]]:
    """A client of it, and its process id; the embedded base, and a store that goes with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as store:
        said = {"port": port, "store": store, "adapters_dir": f"{store}/none", **settings}
        environment = os.environ | {f"BERT_LORA_{k.upper()}": str(v) for k, v in said.items()}
        server = subprocess.Popen([sys.executable, "-m", "bert_lora", "serve"], env=environment)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                _wait(client)
                yield client, server.pid
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


def reset_peak(pid: int) -> int:
    """The resident bytes now; the peak starts from here."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _status(pid, "VmRSS")


def peak(pid: int) -> int:
    """The most resident bytes since reset_peak."""
    return _status(pid, "VmHWM")


def _status(pid: int, field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0
