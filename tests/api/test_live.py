"""GET /live: what the server did lately, as its own answers and /metrics have it."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from tests.api.test_running import metric
from tests.conftest import Serve
from tests.live import eventually
from tests.oracles import make_adapter, put


@pytest.fixture
def fresh(serve: Serve, tiny_bert: Path, folders: dict[str, Path]) -> httpx.Client:
    """A server of its own, with the adapter a: others' batches are not among the last."""
    client = serve(model=str(tiny_bert)).client
    put(client, "a", folders["a"])
    return client


def test_the_last_batches_have_each_adapters_tokens(fresh: httpx.Client) -> None:
    body = {"inputs": [[2, 7, 3], [2, 3], [2, 9, 9, 3]], "adapters": ["a", None, "a"]}
    fresh.post("/embed", json=body).raise_for_status()
    live = fresh.get("/live").json()
    assert sum(b["adapters"].get("a", 0) for b in live["batches"]) == 7
    assert sum(b["adapters"].get("base", 0) for b in live["batches"]) == 2
    last = live["batches"][-1]
    assert abs(last["ended"] - time.time()) < 60
    assert last["ms"] > 0
    total = sum(sum(batch["adapters"].values()) for batch in live["batches"])
    assert eventually(lambda: sum(fresh.get("/live").json()["tokens_per_s"]) == total)
    assert len(live["tokens_per_s"]) == 60


def test_the_queue_and_its_limits_are_those_of_the_metrics(fresh: httpx.Client) -> None:
    fresh.post("/embed", json={"inputs": "x"}).raise_for_status()
    live = fresh.get("/live").json()
    assert live["queue"]["limit_tokens"] == metric(fresh, "bert_lora_queue_limit_tokens")
    assert live["batch_limit_tokens"] == metric(fresh, "bert_lora_batch_limit_tokens")
    assert [live["queue"][name] for name in ("tokens", "running", "waiting")] == [0, 0, 0]


def test_latencies_are_of_calls_of_the_model_that_were_answered(fresh: httpx.Client) -> None:
    assert fresh.get("/live").json()["latency"]["requests"] == 0
    for _ in range(3):
        fresh.post("/embed", json={"inputs": "x"}).raise_for_status()
    assert fresh.post("/embed?adapter=nobody", json={"inputs": "x"}).status_code == 404
    fresh.get("/adapters").raise_for_status()
    latency = fresh.get("/live").json()["latency"]
    assert latency["requests"] == 3
    assert 0 < latency["p50_ms"] <= latency["p99_ms"]


def test_an_old_versions_tokens_are_its_names(
    fresh: httpx.Client, tiny_bert: Path, tmp_path: Path
) -> None:
    before = fresh.get("/adapters/a").json()["version"]
    put(fresh, "a", make_adapter(tiny_bert, tmp_path / "new", 9, scale=4))
    fresh.post("/embed?adapter=a@" + before, json={"inputs": [[2, 7, 3]]}).raise_for_status()
    assert fresh.get("/live").json()["batches"][-1]["adapters"] == {"a": 3}
