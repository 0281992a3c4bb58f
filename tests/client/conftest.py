"""A server with a reranker, a classifier and an embedder on the tiny BERT, and clients of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bert_lora import Client
from tests.live import LiveServer, live_server
from tests.oracles import make_adapter, put


@dataclass(frozen=True)
class Served:
    """folders: the adapters tuned and other (embedders), labels (two labels) and rank (one), by name."""

    live: LiveServer
    client: Client
    folders: dict[str, Path]


@pytest.fixture(scope="session")
def folders(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("client")
    return {
        "tuned": make_adapter(tiny_bert, folder / "tuned", 1),
        "other": make_adapter(tiny_bert, folder / "other", 4),
        "labels": make_adapter(tiny_bert, folder / "labels", 2, labels=2),
        "rank": make_adapter(tiny_bert, folder / "rank", 3, labels=1),
    }


@pytest.fixture(scope="module")
def served(
    tiny_bert: Path, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """It takes few inputs a request, so that every call of some dozens is split."""
    folder = tmp_path_factory.mktemp("served")
    live = live_server(
        model=str(tiny_bert),
        store=folder / "store",
        adapters_dir=folder / "none",
        max_client_batch=16,
    )
    for name, source in folders.items():
        put(live.client, name, source)
    with Client(live.url) as client:
        yield Served(live, client, folders)
    live.stop()
