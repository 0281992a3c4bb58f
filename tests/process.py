"""The server as a process of its own: what can be killed, signalled and starved from outside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

START_S = 120


@dataclass(eq=False)
class Process:
    """A server's process, its address and what it logs."""

    child: subprocess.Popen[bytes]
    url: str
    client: httpx.Client
    log: Path
    environ: dict[str, str]

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.child.kill()
        self.child.wait(30)
        self.client.close()

    def end(self, timeout_s: float = 60) -> int:
        """SIGTERM; the exit code."""
        self.child.send_signal(signal.SIGTERM)
        code = self.child.wait(timeout_s)
        self.client.close()
        return code


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def start(
    folder: Path,
    *,
    wait: bool = True,
    module: str = "bert_lora",
    **settings: Any,
) -> Process:
    """`python -m module serve` with a store and a log in `folder`.

    Raises RuntimeError with its log where it does not come up.
    """
    port = settings.pop("port", None) or free_port()
    said = {"store": folder / "store", "adapters_dir": folder / "none", "port": port, **settings}
    environ = {k: v for k, v in os.environ.items() if not k.startswith("BERT_LORA_")}
    environ |= {f"BERT_LORA_{k.upper()}": str(v) for k, v in said.items()}
    log = folder / "log"
    with log.open("ab") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", module, "serve"],
            env=environ,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    process = Process(child, url, httpx.Client(base_url=url, timeout=60), log, environ)
    if wait:
        until_ready(process)
    return process


def until_ready(process: Process) -> None:
    """Raises RuntimeError where it ends or does not answer."""
    began = time.monotonic()
    while time.monotonic() - began < START_S and process.child.poll() is None:
        try:
            if process.client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    process.kill()
    raise RuntimeError(process.log.read_text())
