"""A real server with keys, as `make serve` starts it, and its native routes' answers as the oracle.

These tests run in an environment that has the clients and not the server: `make test-clients`.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

ROOT = Path(__file__).parents[2]
TEXTS = ["I love this film.", "My card has not arrived.", "Where is the nearest bank?"]
QUERY = "When does my card arrive?"
START_S = 120
ADMIN_KEY = "a-key-for-admins"
LIMITED = [f"limited-{i:03}" for i in range(200)]  # each for one test
TOKENS_PER_S = 40
CLOSE = 5e-5  # of numbers that went through a client's own decoding


@dataclass(frozen=True)
class Server:
    """url: without a slash at its end. key: one without limits."""

    url: str
    key: str
    base: str = "sentence-transformers/all-MiniLM-L6-v2"

    def native(self, path: str, body: dict[str, Any], key: str | None = None) -> Any:
        """The native route's answer. Raises HTTPError."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key or self.key}"}
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), headers, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def vectors(self, texts: list[str] = TEXTS, adapter: str = "base", **wish: Any) -> Any:
        """Of /embed."""
        return self.native(f"/embed?adapter={adapter}", {"inputs": texts, **wish})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _running(folder: Path, key: str, **settings: str) -> Iterator[Server]:
    port = free_port()
    settings |= {"PORT": str(port), "STORE": str(folder / "store")}
    process = subprocess.Popen(
        [os.environ["SERVER_PYTHON"], "-m", "bert_lora", "serve"],
        cwd=ROOT,
        env={**os.environ, **{f"BERT_LORA_{name}": value for name, value in settings.items()}},
    )
    try:
        running = Server(f"http://127.0.0.1:{port}", key)
        _wait(running.url, process)
        _put_reranker(running.url)
        yield running
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With keys."""
    folder, key = tmp_path_factory.mktemp("server"), "a-key-for-clients"
    limited = [f"{key} tokens_per_s={TOKENS_PER_S}" for key in LIMITED]
    (folder / "keys").write_text("\n".join([key, *limited]))
    with _running(folder, key, API_KEYS_FILE=str(folder / "keys"), ADMIN_KEYS=ADMIN_KEY) as running:
        yield running


@pytest.fixture(scope="session")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Without keys, for clients that send none."""
    with _running(tmp_path_factory.mktemp("open"), "none") as running:
        yield running


def _put_reranker(url: str) -> None:
    """The adapter `rerank`: a head of one label, from random numbers. Clients are compared with
    /rerank, whatever its scores are worth.
    """
    rng = np.random.default_rng(0)
    query = "bert.encoder.layer.0.attention.self.query"
    shapes = {
        f"base_model.model.{query}.lora_A.weight": (8, 384),
        f"base_model.model.{query}.lora_B.weight": (384, 8),
        "base_model.model.classifier.weight": (1, 384),
        "base_model.model.classifier.bias": (1,),
    }
    tensors = {name: rng.normal(0, 0.3, shape).astype("<f4") for name, shape in shapes.items()}
    request = urllib.request.Request(
        f"{url}/adapters/rerank?alpha=8&task=classify&labels=relevant",
        save(tensors),
        {"Content-Type": "application/octet-stream", "Authorization": f"Bearer {ADMIN_KEY}"},
        method="PUT",
    )
    try:
        urllib.request.urlopen(request, timeout=60).close()
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()) from None


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, "the server has ended"
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=5).close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
        else:
            return
    raise AssertionError("the server did not start")


_unspent = itertools.cycle(LIMITED)


@pytest.fixture
def spent_key(server: Server) -> Callable[[], str]:
    """Makes a key that is refused with 429 for about four seconds from now."""

    def spend() -> str:
        key = next(_unspent)
        server.native("/embed", {"inputs": ["word " * 198]}, key)  # 200 tokens at 40 a second
        with pytest.raises(urllib.error.HTTPError, match="429"):
            server.native("/embed", {"inputs": "word"}, key)
        return key

    return spend


def assert_close(got: Any, expected: Any) -> None:
    """Lists of numbers, nested alike, each within CLOSE."""
    if isinstance(expected, list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_close(one, other)
    else:
        assert abs(float(got) - expected) <= CLOSE, (got, expected)
