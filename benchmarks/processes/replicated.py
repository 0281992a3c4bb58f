"""Servers on a bucket of SeaweedFS and HAProxy before them, all on loopback; what CPU they take."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never
from unittest.mock import patch

from tests.catalog.seaweed import BUCKET, Seaweed, seaweedfs
from tests.deploy.balancers import FILES, LISTENS, REPLICAS, answers, program
from tests.live import eventually
from tests.process import Process, free_port, start, until_ready

PUSHES = 20
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
Balance = Literal["round robin", "hash", "hash, bounded"]  # the last is as the shipped file has it


@contextmanager
def bucket() -> Iterator[Seaweed]:
    with tempfile.TemporaryDirectory() as folder, seaweedfs(Path(folder)) as seaweed:
        yield seaweed


@contextmanager
def replicas(count: int, seaweed: Seaweed, prefix: str, **settings: Any) -> Iterator[list[Process]]:
    """Ready, each with an empty cache of its own."""
    store = f"s3://{BUCKET}/{prefix}"
    running: list[Process] = []
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, seaweed.environ):
        try:
            for i in range(count):
                own = Path(folder) / str(i)
                own.mkdir()
                cache = own / "cache"
                running.append(start(own, wait=False, store=store, cache_dir=cache, **settings))
            for process in running:
                until_ready(process)
            yield running
        finally:
            for process in running:
                process.kill()


def push(server: Process, name: str, files: dict[str, bytes]) -> None:
    """A bucket that has just started, on a machine that is busy, may not answer at once."""
    for _ in range(PUSHES):
        answer = server.client.put(f"/adapters/{name}", files=files)
        if answer.status_code != 503:
            break
        print(f"PUT {name} again: {answer.text[:300]}", file=sys.stderr)
        time.sleep(1)
    answer.raise_for_status()


@dataclass(frozen=True)
class Balancer:
    url: str
    pid: int


@contextmanager
def balancer(servers: list[Process], balance: Balance = "hash, bounded") -> Iterator[Balancer]:
    """The shipped HAProxy, before one server or two."""
    port, text = free_port(), FILES["haproxy"].read_text()
    for shipped, real in zip((LISTENS, *REPLICAS), (port, *map(_port, servers)), strict=False):
        text = text.replace(shipped, str(real))
    lines = [line for line in text.splitlines() if not any(r in line for r in REPLICAS)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = folder / "haproxy.cfg"
        config.write_text("\n".join(_balanced(lines, balance)) + "\n")
        out = stack.enter_context((folder / "log").open("wb"))
        command = [str(program("haproxy")), "-db", "-f", str(config)]
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            if not eventually(lambda: answers(url)):
                raise RuntimeError((folder / "log").read_text())
            yield Balancer(url, child.pid)
        finally:
            child.kill()
            child.wait(10)


def _balanced(lines: list[str], balance: Balance) -> list[str]:
    match balance:
        case "hash, bounded":
            return lines
        case "hash":
            return [line for line in lines if "hash-balance-factor" not in line]
        case "round robin":
            plain = [line for line in lines if not line.strip().startswith("hash-")]
            return ["    balance roundrobin" if "balance hash" in x else x for x in plain]
        case _:
            assert_never(balance)


def _port(server: Process) -> str:
    return server.url.rpartition(":")[2]


def cpu_s(pid: int) -> float:
    """That the process has taken so far; Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND


def rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))


class CpuTaken:
    """Seconds of CPU of these processes within a `with`."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self.seconds = 0.0
        self.wall_s = 0.0

    def __enter__(self) -> CpuTaken:
        self._before, self._began = sum(map(cpu_s, self._pids)), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = sum(map(cpu_s, self._pids)) - self._before
        self.wall_s = time.monotonic() - self._began
