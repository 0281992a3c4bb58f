"""/metrics names the busiest adapters, and nothing that is gone."""

from __future__ import annotations

from pathlib import Path

import httpx

from app.inference.busiest import OTHERS
from tests.conftest import Serve
from tests.oracles import put


def series(client: httpx.Client, name: str) -> int:
    return client.get("/metrics").text.count(f'adapter="{name}"')


def test_metrics_name_the_busiest_and_forget_the_deleted(
    serve: Serve, tiny_bert: Path, folders: dict[str, Path]
) -> None:
    client = serve(model=str(tiny_bert), metrics_adapters=1).client
    put(client, "a", folders["a"])
    put(client, "b", folders["b"])
    for name in ("a", "b", "b"):
        client.post("/embed", params={"adapter": name}, json={"inputs": "good"}).raise_for_status()
    assert series(client, "a")
    assert not series(client, "b")
    assert series(client, OTHERS)
    client.delete("/adapters/a").raise_for_status()
    assert not series(client, "a")
    client.post("/embed", params={"adapter": "b"}, json={"inputs": "good"}).raise_for_status()
    assert series(client, "b")
