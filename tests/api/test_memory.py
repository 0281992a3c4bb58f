"""Adapters within a memory budget: what falls out comes back the same, and a start does not
wait.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from pytest import MonkeyPatch

from app.catalog import fetch
from tests.conftest import Serve
from tests.live import LiveServer
from tests.oracles import files_of, make_adapter, put

TEXTS = ["the good film", "my card is lost"]


@pytest.fixture
def many(tiny_bert: Path, tmp_path: Path) -> dict[str, Path]:
    return {f"a{i}": make_adapter(tiny_bert, tmp_path / f"a{i}", i, scale=4) for i in range(6)}


def embed(server: LiveServer, name: str) -> list[list[float]]:
    answer = server.client.post(f"/embed?adapter={name}", json={"inputs": TEXTS})
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def was_resident(server: LiveServer, *names: str) -> str:
    body = {"inputs": TEXTS, "adapters": list(names)}
    answer: str = server.client.post("/embed", json=body).headers["X-Adapter-Resident"]
    return answer


def metric(server: LiveServer, name: str) -> float:
    lines = server.client.get("/metrics").text.splitlines()
    return float(next(x for x in lines if x.startswith(f"{name} ")).split()[1])


def resident(server: LiveServer) -> set[str]:
    return {a["name"] for a in server.client.get("/adapters").json() if a["resident"]}


def test_what_falls_out_of_memory_comes_back_with_the_same_answers(
    serve: Serve, tiny_bert: Path, many: dict[str, Path]
) -> None:
    server = serve(model=str(tiny_bert))
    reports = {name: put(server.client, name, folder) for name, folder in many.items()}
    wanted = {name: embed(server, name) for name in many}
    size = reports["a0"]["resident_bytes"]
    server.stop()
    small = serve(
        model=str(tiny_bert), store=server_store(server), adapter_memory_bytes=2 * size + 1
    )
    for name in [*many, *reversed(many)]:
        assert embed(small, name) == wanted[name]
        assert len(resident(small)) <= 2
    assert metric(small, "bert_lora_resident_bytes") <= 2 * size + 1
    assert metric(small, "bert_lora_adapter_misses_total") >= len(many)
    version = reports["a0"]["version"]
    for name in ("a0", f"a0@{version[:12]}", "base"):
        assert was_resident(small, name, name) == "true"
    assert was_resident(small, "a0", "a5") == "false"
    assert was_resident(small, f"a4@{reports['a4']['version']}", "base") == "false"
    embed(small, "a0")
    before = metric(small, "bert_lora_adapter_hits_total")
    embed(small, "a0")
    assert metric(small, "bert_lora_adapter_hits_total") == before + 1
    for name, report in reports.items():
        shown = small.client.get(f"/adapters/{name}").json()
        assert shown["delta"] == report["delta"]
        assert shown["version"] == report["version"]
    merged = small.client.post("/adapters/a3/merge").json()  # one that is not in memory
    assert merged["merged"]
    for got, want in zip(embed(small, "a3"), wanted["a3"], strict=True):
        assert got == pytest.approx(want, abs=1e-5)


def server_store(server: LiveServer) -> Path:
    store: Path = server.app.state.serving.installer.store.root
    return store


def test_a_start_serves_every_name_before_it_has_loaded_them(
    serve: Serve, tiny_bert: Path, many: dict[str, Path], monkeypatch: MonkeyPatch
) -> None:
    first = serve(model=str(tiny_bert))
    for name, folder in many.items():
        put(first.client, name, folder)
    wanted = {name: embed(first, name) for name in many}
    monkeypatch.setattr(fetch, "EAGER_S", 0)
    monkeypatch.setattr(fetch.Fetcher, "warm", nothing)
    first.stop()
    second = serve(model=str(tiny_bert), store=server_store(first))
    assert second.client.get("/readyz").json()["adapters"] == len(many)
    assert resident(second) == set()
    answers = asyncio.run(all_at_once(second.url, ["a1"] * 8))
    assert all(answer == wanted["a1"] for answer in answers)
    assert resident(second) == {"a1"}
    damaged = server_store(first) / "versions" / second.client.get("/adapters/a2").json()["version"]
    weights = damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    answer = second.client.post("/embed?adapter=a2", json={"inputs": TEXTS})
    assert answer.status_code == 404
    assert "not the ones that were uploaded" in answer.json()["error"]
    assert "a2" in second.client.get("/readyz").json()["broken"]
    put(second.client, "a2", many["a2"])
    assert embed(second, "a2") == wanted["a2"]


async def nothing(_: object) -> None:
    """In place of what is loaded while serving."""


async def all_at_once(url: str, names: list[str]) -> list[object]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        asked = [client.post(f"/embed?adapter={n}", json={"inputs": TEXTS}) for n in names]
        return [answer.json() for answer in await asyncio.gather(*asked)]


def test_merging_by_traffic_is_gone_and_a_put_that_asks_for_it_changes_nothing(
    serve: Serve, tiny_bert: Path, many: dict[str, Path]
) -> None:
    client = serve(model=str(tiny_bert)).client
    answer = client.put("/adapters/a0?merge=auto", files=files_of(many["a0"]))
    assert (answer.status_code, answer.json()["error_type"]) == (400, "malformed")
    assert "POST /adapters/{name}/merge" in answer.json()["error"]
    assert client.get("/adapters").json() == []
    assert "merge" not in put(client, "a0", many["a0"])


def test_an_old_version_that_is_damaged_on_disk_is_a_404_and_no_500_and_a_put_heals_it(
    serve: Serve, tiny_bert: Path, many: dict[str, Path]
) -> None:
    server = serve(model=str(tiny_bert), adapter_memory_bytes=1)
    old = put(server.client, "a", many["a0"])["version"]
    put(server.client, "a", many["a1"])
    (server_store(server) / "versions" / old / "options.json").write_text("{broken")
    answer = server.client.post(f"/embed?adapter=a@{old}", json={"inputs": TEXTS})
    assert (answer.status_code, answer.json()["error_type"]) == (404, "version_not_found")
    answer = server.client.post("/adapters/a/rollback", json={"version": old})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_rejected")
    put(server.client, "a", many["a0"])
    wanted = embed(server, "a")
    weights = server_store(server) / "versions" / old / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    put(server.client, "b", many["a1"])  # a falls out
    assert put(server.client, "a", many["a0"])["unchanged"]
    put(server.client, "b", many["a2"])
    assert embed(server, "a") == wanted
