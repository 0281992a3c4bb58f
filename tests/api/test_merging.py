"""Merge and unmerge under traffic: no answer changes, and the base is what it was at load."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
import torch
from torch.testing import assert_close

from tests.conftest import Serve
from tests.live import LiveServer
from tests.oracles import FP32, SENTENCES, files_of, put

CYCLES = 300


def digest(client: httpx.Client) -> str:
    base = client.get("/info?verify=true").json()["base"]
    assert base["intact"]
    assert base["digest"] == base["digest_now"]
    return str(base["digest"])


@pytest.mark.slow
def test_hundreds_of_cycles_under_traffic_change_no_answer(
    tiny_server: LiveServer, served: httpx.Client
) -> None:
    queries = ["?adapter=a", "?adapter=b&adapter=base"]
    body = {"inputs": SENTENCES[:3]}
    before = {q: served.post(f"/embed{q}", json=body).json() for q in queries}
    frozen = digest(served)
    answers: list[tuple[str, object]] = []

    async def traffic() -> None:
        async with httpx.AsyncClient(base_url=tiny_server.url, timeout=60) as client:
            done = asyncio.Event()

            async def ask(query: str) -> None:
                while not done.is_set():
                    answer = await client.post(f"/embed{query}", json=body)
                    answers.append((query, answer.raise_for_status().json()))

            asking = [asyncio.create_task(ask(q)) for q in queries]
            for _ in range(CYCLES):
                merged = await client.post("/adapters/a/merge")
                assert merged.json()["merged"] is True
                unmerged = await client.post("/adapters/a/unmerge")
                assert unmerged.json()["merged"] is False
            done.set()
            await asyncio.gather(*asking)

    asyncio.run(traffic())
    assert len(answers) > 100
    for query, answer in answers:
        close(answer, before[query])
    assert digest(served) == frozen


def close(got: object, wanted: object) -> None:
    if isinstance(wanted, dict):
        assert isinstance(got, dict)
        for name in wanted:
            close(got[name], wanted[name])
    else:
        assert_close(torch.tensor(got), torch.tensor(wanted), **FP32)


def test_merging_twice_is_no_error_and_memory_is_given_back(
    tiny_server: LiveServer, served: httpx.Client
) -> None:
    for _ in range(2):
        assert served.post("/adapters/b/merge").json()["merged"] is True
    merged_bytes = served.get("/info").json()["merged_bytes"]
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 64) + 32 * 32
    assert merged_bytes == 4 * weights
    assert served.get("/adapters/b").json()["merged"] is True
    for _ in range(2):
        assert served.post("/adapters/b/unmerge").json()["merged"] is False
    assert served.get("/info").json()["merged_bytes"] == 0


def test_replacing_or_deleting_a_merged_adapter_gives_its_memory_back(
    served: httpx.Client, folders: dict[str, Path]
) -> None:
    served.post("/adapters/a/merge")
    put(served, "a", folders["b"])
    assert served.get("/info").json()["merged_bytes"] == 0
    served.post("/adapters/a/merge")
    served.delete("/adapters/a")
    served.delete("/adapters/b")
    assert served.get("/info").json()["merged_bytes"] == 0


def test_merging_over_the_memory_budget_is_507(
    serve: Serve, tiny_bert: Path, folders: dict[str, Path]
) -> None:
    server = serve(model=str(tiny_bert), merge_memory_bytes=10_000)
    put(server.client, "b", folders["b"])
    answer = server.client.post("/adapters/b/merge")
    assert (answer.status_code, answer.json()["error_type"]) == (507, "merge_memory_full")
    assert server.client.get("/adapters/b").json()["merged"] is False


@pytest.mark.slow
def test_uploads_deletes_and_requests_at_once_keep_every_answer_right(
    tiny_server: LiveServer, served: httpx.Client, folders: dict[str, Path]
) -> None:
    body = {"inputs": SENTENCES[:3]}
    wanted = {n: served.post(f"/embed?adapter={n}", json=body).json() for n in ("a", "b")}
    versions = {served.get(f"/adapters/{n}").json()["version"]: n for n in ("a", "b")}
    files = {n: (folders[n] / "adapter_model.safetensors").read_bytes() for n in ("a", "b")}
    configs = {n: (folders[n] / "adapter_config.json").read_bytes() for n in ("a", "b")}

    async def run() -> None:
        async with httpx.AsyncClient(base_url=tiny_server.url, timeout=60) as client:
            done = asyncio.Event()

            async def ask() -> int:
                count = 0
                while not done.is_set():
                    answer = await client.post("/embed?adapter=moving", json=body)
                    if answer.status_code == 404:
                        continue
                    version = answer.headers["x-adapter"].removeprefix("moving@")
                    close(answer.json(), wanted[versions[version]])
                    count += 1
                return count

            asking = [asyncio.create_task(ask()) for _ in range(3)]
            for i in range(60):
                n = "ab"[i % 2]
                form = {
                    "adapter_model.safetensors": ("adapter_model.safetensors", files[n]),
                    "adapter_config.json": ("adapter_config.json", configs[n]),
                }
                answer = await client.put("/adapters/moving", files=form)
                assert answer.status_code in (200, 201)
                if i % 5 == 4:
                    assert (await client.delete("/adapters/moving")).status_code == 204
            done.set()
            assert sum(await asyncio.gather(*asking)) > 20

    asyncio.run(run())


def test_names_with_the_same_bytes_are_merged_each_on_its_own(
    served: httpx.Client, folders: dict[str, Path]
) -> None:
    put(served, "twin", folders["a"])
    served.post("/adapters/a/merge")
    assert served.get("/adapters/a").json()["merged"] is True
    assert served.get("/adapters/twin").json()["merged"] is False
    served.post("/adapters/twin/unmerge")
    assert served.get("/adapters/a").json()["merged"] is True
    served.post("/adapters/twin/merge")
    body = {"inputs": SENTENCES}
    one, two = (served.post(f"/embed?adapter={n}", json=body).json() for n in ("a", "twin"))
    assert one == two


def test_merging_while_the_name_is_replaced_holds_no_memory_afterwards(
    tiny_server: LiveServer, served: httpx.Client, folders: dict[str, Path]
) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(base_url=tiny_server.url, timeout=60) as client:

            async def replace() -> None:
                for i in range(12):
                    answer = await client.put("/adapters/x", files=files_of(folders["ab"[i % 2]]))
                    assert answer.status_code in (200, 201)

            async def merge() -> None:
                for _ in range(40):
                    answer = await client.post("/adapters/x/merge")
                    assert answer.status_code == 404 or answer.json()["merged"] is True

            await asyncio.gather(replace(), merge())

    asyncio.run(run())
    served.delete("/adapters/x")
    assert served.get("/info").json()["merged_bytes"] == 0
