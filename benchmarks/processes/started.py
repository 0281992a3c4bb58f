"""Processes pinned to their cores: a library's worker, or a server asked over HTTP.

What goes wrong with one of them is a PeerFailed with its last words; nothing here knows who it is.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from benchmarks.processes.environments import ROOT

START_S, ANSWER_S, STOP_S = 180, 120, 15
# Offline, and nobody is told that it was run.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
Vectors = list[list[float]]


class PeerFailed(Exception):
    """It could not be started, or did not answer."""


def pinned(
    command: list[str], cores: list[int], log: IO[str], **said: Any
) -> subprocess.Popen[str]:
    """Started on these cores: torch fixes its pools then."""
    environment = {**os.environ, **QUIET, "OMP_NUM_THREADS": str(len(cores)), **said.pop("env", {})}
    return subprocess.Popen(
        ["taskset", "-c", ",".join(map(str, cores)), *command],
        env=environment, cwd=ROOT, stderr=log, text=True, **said,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_words(log: Path) -> str:
    """Its last line that says something: mostly the exception."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")


@dataclass(frozen=True, eq=False)
class Worker:
    """worker.py under some environment's Python. vectors: of each request, from its first run."""

    process: subprocess.Popen[str]
    log: Path
    vectors: dict[str, Vectors]

    def ask(self, request: str) -> float:
        """Milliseconds, by its own clock. Raises PeerFailed."""
        return float(_told(self.process, self.log, request, ANSWER_S)["ms"])


@contextmanager
def worker(
    python: Path, kind: str, job: Mapping[str, Any], cores: list[int], folder: Path
) -> Iterator[Worker]:
    """Raises PeerFailed."""
    log = folder / f"{len(list(folder.iterdir()))}-{kind}.log"
    command = [str(python), str(ROOT / "benchmarks" / "processes" / "worker.py"), kind]
    env = {"PYTHONPATH": str(ROOT)} if kind == "engine" else {}
    with log.open("w") as file:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = pinned(command, cores, file, env=env, **pipes)
        try:
            first = _told(process, log, json.dumps(job), START_S)
            yield Worker(process, log, first["vectors"])
        finally:
            end(process)


def _told(process: subprocess.Popen[str], log: Path, line: str, limit_s: float) -> dict[str, Any]:
    """One line in, one line out; killed if that takes too long."""
    if process.stdin is None or process.stdout is None:
        raise PeerFailed("started without pipes")
    watchdog = threading.Timer(limit_s, process.kill)
    watchdog.start()
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        said = process.stdout.readline()
    except OSError:
        said = ""
    finally:
        watchdog.cancel()
    if not said:
        process.wait(STOP_S)
        raise PeerFailed(last_words(log))
    return dict(json.loads(said))


@dataclass(frozen=True, eq=False)
class Started:
    """A server that is ready, and a client of it."""

    process: subprocess.Popen[str]
    log: Path
    client: httpx.Client

    def why(self, error: httpx.HTTPError) -> str:
        """Its own last words, where it ended."""
        code = self.process.poll()
        said = f"{type(error).__name__}: {error}"
        return said if code is None else f"{said}; it ended with {code}: {last_words(self.log)}"


@dataclass(frozen=True, eq=False)
class Server:
    """bodies: each request as it is sent. read: its answer -> vectors."""

    started: Started
    path: str
    bodies: Mapping[str, bytes]
    read: Callable[[Any], Vectors]

    @property
    def vectors(self) -> dict[str, Vectors]:
        return {name: self.read(self._post(name).json()) for name in self.bodies}

    def ask(self, request: str) -> float:
        """Milliseconds until the whole answer is here; it is not parsed. Raises PeerFailed."""
        started = time.perf_counter()
        self._post(request)
        return 1000 * (time.perf_counter() - started)

    def _post(self, request: str) -> httpx.Response:
        try:
            headers = {"Content-Type": "application/json"}
            answer = self.started.client.post(
                self.path, content=self.bodies[request], headers=headers
            )
        except httpx.HTTPError as error:
            raise PeerFailed(self.started.why(error)) from None
        if answer.status_code != 200:
            raise PeerFailed(f"{answer.status_code}: {answer.text[:200]}")
        return answer


@contextmanager
def serving(
    command: list[str], env: Mapping[str, str], ready: str, cores: list[int], folder: Path
) -> Iterator[Started]:
    """The server, once GET `ready` is a 200; PORT in the command is replaced.

    Raises PeerFailed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log = folder / f"{len(list(folder.iterdir()))}-server.log"
    with log.open("w") as file:
        command = [port if word == "PORT" else word for word in command]
        process = pinned(command, cores, file, env=env, stdout=file)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_S) as client:
                _wait(client, ready, process, log)
                yield Started(process, log, client)
        finally:
            end(process)


def _wait(client: httpx.Client, ready: str, process: subprocess.Popen[str], log: Path) -> None:
    ends = time.monotonic() + START_S
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise PeerFailed(last_words(log))
        try:
            if client.get(ready).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise PeerFailed(f"not ready within {START_S} s: {last_words(log)}")
