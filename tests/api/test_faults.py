"""Faults from outside, on a server that is a process: kills, a full disk, damaged files."""

from __future__ import annotations

import random
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app.assemble import StartRefused
from tests.conftest import Serve
from tests.live import eventually
from tests.oracles import files_of, make_adapter, put
from tests.process import Process, start

TEXT = {"inputs": ["the good film", "my card is lost"]}


@pytest.fixture
def folders(tiny_bert: Path, tmp_path: Path) -> list[Path]:
    return [make_adapter(tiny_bert, tmp_path / f"a{i}", i, scale=4) for i in range(3)]


@pytest.fixture
def run(tiny_bert: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """run(…): a server's process on the same store each time; killed after the test."""
    running: list[Process] = []

    def begin(**settings: object) -> Process:
        running.append(start(tmp_path, model=str(tiny_bert), **settings))
        return running[-1]

    yield begin
    for process in running:
        process.kill()


def embed(client: httpx.Client, name: str) -> object:
    answer = client.post(f"/embed?adapter={name}", json=TEXT)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.slow
def test_killed_amid_changes_what_was_acknowledged_is_there(
    run: Callable[..., Process], folders: list[Path]
) -> None:
    draw = random.Random(0)
    process = run()
    versions = [put(process.client, "x", folder)["version"] for folder in folders]
    wanted = {v: embed(process.client, f"x@{v}") for v in versions}
    for _ in range(2):
        acknowledged: list[str | None] = [process.client.get("/adapters/x").json()["version"]]
        asked: list[str | None] = list(acknowledged)

        def change(client: httpx.Client, said: list[str | None], tried: list[str | None]) -> None:
            for i in range(1000):
                which = i % 4
                tried.append(None if which == 3 else versions[which])
                try:
                    if which == 3:
                        client.delete("/adapters/x").raise_for_status()
                    else:
                        put(client, "x", folders[which])
                except httpx.TransportError:
                    return
                said.append(tried[-1])

        changing = threading.Thread(target=change, args=(process.client, acknowledged, asked))
        changing.start()
        time.sleep(draw.uniform(0.2, 1.0))
        process.child.kill()
        changing.join()
        process.child.wait()
        process = run()
        answer = process.client.get("/adapters/x")
        found = answer.json()["version"] if answer.status_code == 200 else None
        assert found in (acknowledged[-1], asked[-1])
        assert len(acknowledged) > 2
        assert process.client.get("/readyz").json()["broken"] == {}
        if found is None:
            put(process.client, "x", folders[0])
            found = versions[0]
        assert embed(process.client, "x") == wanted[found]


@pytest.mark.slow
def test_on_a_full_disk_changes_are_refused_and_the_rest_goes_on(
    run: Callable[..., Process], folders: list[Path], tmp_path: Path
) -> None:
    dropped = tmp_path / "dropped"
    process = run(adapters_dir=dropped)
    client, child = process.client, process.child.pid
    version = put(client, "x", folders[0])["version"]
    wanted = embed(client, "x")
    store = process.log.parent / "store"
    before = sorted(path for path in store.rglob("*") if path.is_file())
    unbounded = resource.prlimit(child, resource.RLIMIT_FSIZE)
    resource.prlimit(child, resource.RLIMIT_FSIZE, (4096, unbounded[1]))
    answer = client.put("/adapters/y", files=files_of(folders[1]))
    assert (answer.status_code, answer.json()["error_type"]) == (507, "store_full"), answer.text
    resource.prlimit(child, resource.RLIMIT_FSIZE, (10, unbounded[1]))
    assert client.put("/adapters/x", files=files_of(folders[1])).status_code == 507
    assert client.post("/adapters/x/rollback", json={"version": version}).status_code == 507
    assert embed(client, "x") == wanted
    assert client.get("/readyz").status_code == 200
    assert sorted(path for path in store.rglob("*") if path.is_file()) == before
    shutil.copytree(folders[2], dropped / "z")
    assert eventually(lambda: "z" in client.get("/readyz").json()["broken"])
    assert client.delete("/adapters/x").status_code == 204  # which makes room
    resource.prlimit(child, resource.RLIMIT_FSIZE, unbounded)
    put(client, "y", folders[1])
    assert eventually(lambda: client.get("/adapters/z").status_code == 200)


def test_a_damaged_version_is_put_aside_and_named_and_the_rest_is_served(
    serve: Serve, tiny_bert: Path, folders: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    first = serve(model=str(tiny_bert))
    version = put(first.client, "x", folders[0])["version"]
    put(first.client, "y", folders[1])
    wanted = embed(first.client, "y")
    first.stop()
    store = first.app.state.serving.installer.store.root
    weights = store / "versions" / version / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    again = serve(model=str(tiny_bert))
    ready = again.client.get("/readyz?verbose=true").json()
    assert list(ready["broken"]) == ["x"]
    assert ready["set_aside"] == [version]
    assert (store / "damaged" / version / "adapter_model.safetensors").read_bytes() == content
    assert version in caplog.text
    assert embed(again.client, "y") == wanted
    assert again.client.post("/embed?adapter=x", json=TEXT).status_code == 404
    assert put(again.client, "x", folders[0])["version"] == version
    embed(again.client, "x")


def test_a_store_that_is_in_use_and_one_that_is_a_file_stop_the_start(
    serve: Serve, tiny_bert: Path, tmp_path: Path
) -> None:
    serve(model=str(tiny_bert))
    with pytest.raises(StartRefused, match=r"in use by process \d+: stop that server, or give"):
        serve(model=str(tiny_bert))
    (tmp_path / "file").write_text("")
    with pytest.raises(StartRefused, match="cannot be used"):
        serve(model=str(tiny_bert), store=tmp_path / "file")


def test_a_disk_that_cannot_be_written_is_served_from(
    serve: Serve, tiny_bert: Path, folders: list[Path], tmp_path: Path
) -> None:
    """As root nothing is read-only by its mode: what is in the way here is a file where tmp/
    was.
    """
    server = serve(model=str(tiny_bert))
    put(server.client, "x", folders[0])
    wanted = embed(server.client, "x")
    (tmp_path / "store" / "tmp").rmdir()
    (tmp_path / "store" / "tmp").write_text("")
    answer = server.client.put("/adapters/y", files=files_of(folders[1]))
    assert (answer.status_code, answer.json()["error_type"]) == (503, "store_unavailable")
    assert embed(server.client, "x") == wanted
    assert server.client.get("/readyz").json()["adapters"] == 1


def test_what_is_damaged_beside_the_weights_keeps_no_server_from_starting(
    serve: Serve, tiny_bert: Path, folders: list[Path]
) -> None:
    first = serve(model=str(tiny_bert))
    versions = [put(first.client, name, folders[i])["version"] for i, name in enumerate("xyz")]
    wanted = embed(first.client, "x")
    first.stop()
    store = first.app.state.serving.installer.store.root
    report = store / "versions" / versions[0] / "report.json"
    report.write_text(report.read_text().replace("resident_bytes", "resident_byteS"))
    (store / "versions" / versions[1] / "report.json").write_text("[" * 100_000)
    (store / "names" / "zz.json").mkdir()
    (store / "names" / "z.json").write_text("[" * 100_000)
    again = serve(model=str(tiny_bert))
    ready = again.client.get("/readyz").json()
    assert sorted(ready["broken"]) == ["z", "zz"]
    assert embed(again.client, "x") == wanted
    assert (store / "versions" / versions[2]).exists()  # z's, for whoever mends it
