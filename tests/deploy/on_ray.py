"""The server on a Ray of this machine alone, as `bert-lora deploy ray` starts it, and its replicas."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.live import eventually
from tests.process import free_port

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not there: pip install '.[dev,ray]'"
)
START_S = 180
PORTS = range(30_000, 31_000)  # of Ray, for the replicas' own HTTP


@contextmanager
def on_ray(folder: Path, more: Mapping[str, str] | None = None, **settings: Any) -> Iterator[str]:
    """The ingress' address. more: variables that are no settings."""
    port = free_port()
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("BERT_LORA_", "RAY_"))}
    environ |= {f"BERT_LORA_{k.upper()}": str(v) for k, v in {**settings, "port": port}.items()}
    environ |= more or {}
    command = [sys.executable, "-m", "bert_lora", "deploy", "ray"]
    with (folder / "log").open("wb") as out:
        child = subprocess.Popen(command, env=environ, stdout=out, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        assert eventually(lambda: ready(url) or child.poll() is not None, START_S)
        assert child.poll() is None, (folder / "log").read_text()
        yield url
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(60)


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def replicas(url: str) -> set[int]:
    """The processes of those that were started with this address."""
    mine = f"BERT_LORA_PORT={url.rpartition(':')[2]}\0".encode()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            known = (process / "cmdline").read_bytes().startswith(b"ray::ServeReplica")
            if known and mine in (process / "environ").read_bytes():
                found.add(int(process.name))
        except OSError:
            continue
    return found


def each(url: str) -> dict[int, str]:
    """The own address of each replica that takes requests, by process."""
    open_now = {
        process: connection.laddr.port
        for process in replicas(url)
        for connection in _connections(process)
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port in PORTS
    }
    return {process: f"http://127.0.0.1:{port}" for process, port in open_now.items()}


def _connections(process: int) -> list[Any]:
    try:
        return psutil.Process(process).net_connections("tcp")
    except psutil.Error:  # it has ended
        return []
