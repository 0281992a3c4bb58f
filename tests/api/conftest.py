"""Adapters on the tiny BERT that several rooms' tests ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.live import LiveServer
from tests.oracles import make_adapter, put


@pytest.fixture(scope="session")
def folders(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PEFT folders: a and b embed, c has three labels."""
    root = tmp_path_factory.mktemp("adapters")
    targets = ["query", "key", "value", "dense"]
    return {
        "a": make_adapter(tiny_bert, root / "a", 1, scale=4),
        "b": make_adapter(tiny_bert, root / "b", 2, r=3, target_modules=targets, scale=4),
        "c": make_adapter(tiny_bert, root / "c", 3, r=4, labels=3, scale=4),
    }


@pytest.fixture
def served(tiny_server: LiveServer, folders: dict[str, Path]) -> Iterator[httpx.Client]:
    """The tiny BERT with exactly a, b and c."""
    client = tiny_server.client
    for entry in client.get("/adapters").json():  # what another file's tests have left
        client.delete(f"/adapters/{entry['name']}")
    for name, folder in folders.items():
        put(client, name, folder)
    yield client
    for entry in client.get("/adapters").json():
        client.delete(f"/adapters/{entry['name']}")
