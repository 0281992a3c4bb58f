"""ADAPTERS_DIR while it is away, empty, unreadable, or loses one of its folders."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.adapters import files
from app.catalog import watch
from tests.conftest import Serve
from tests.live import eventually
from tests.oracles import files_of, put

BRIEF_S = 0.3
Start = Callable[[], httpx.Client]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SETTLE_S", BRIEF_S)
    monkeypatch.setattr(watch, "LOOK_AGAIN_S", BRIEF_S)


@pytest.fixture
def dropped(tmp_path: Path, folders: dict[str, Path]) -> Path:
    for name in "ab":
        shutil.copytree(folders[name], tmp_path / "dropped" / name)
    return tmp_path / "dropped"


@pytest.fixture
def start(serve: Serve, tiny_bert: Path, dropped: Path) -> Start:
    return lambda: serve(model=str(tiny_bert), adapters_dir=dropped).client


def staged(client: httpx.Client, name: str, folder: Path) -> str:
    """What a client does by a folder's name: another version held beside, as a canary, and a
    quota.
    """
    answer = client.put(
        f"/adapters/{name}?stage=true&tokens_per_s=500", files=files_of(folder)
    ).raise_for_status()
    version: str = answer.json()["version"]
    body = {"version": version, "percent": 10}
    client.post(f"/adapters/{name}/canary", json=body).raise_for_status()
    return version


@pytest.mark.parametrize("way", ["missing", "empty", "missing, then by and by"])
def test_a_volume_that_is_away_for_a_while_takes_nothing_with_it(
    start: Start, dropped: Path, folders: dict[str, Path], way: str
) -> None:
    client = start()
    version = staged(client, "a", folders["b"])
    before = {name: client.get(f"/adapters/{name}").json() for name in "ab"}
    aside = dropped.with_name("aside")
    dropped.rename(aside)
    if way == "empty":
        dropped.mkdir()
    time.sleep(8 * BRIEF_S)
    assert client.get("/adapters/a").json()["trial"]["version"] == version
    if way == "missing, then by and by":
        dropped.mkdir()
        shutil.copytree(aside / "a", dropped / "a")
        time.sleep(8 * BRIEF_S)
        assert client.get("/adapters/b").status_code == 200
        shutil.copytree(aside / "b", dropped / "b")
    else:
        shutil.rmtree(dropped, ignore_errors=True)
        aside.rename(dropped)
    time.sleep(8 * BRIEF_S)
    assert {name: client.get(f"/adapters/{name}").json() for name in "ab"} == before
    assert client.get("/readyz").json()["broken"] == {}


@pytest.mark.parametrize("way", ["missing", "empty"])
def test_nor_does_one_that_is_away_at_a_start(
    serve: Serve, tiny_bert: Path, dropped: Path, tmp_path: Path, way: str
) -> None:
    store = tmp_path / "kept"
    first = serve(model=str(tiny_bert), adapters_dir=dropped, store=store)
    first.stop()
    aside = dropped.rename(dropped.with_name("aside"))
    if way == "empty":
        dropped.mkdir()
    client = serve(model=str(tiny_bert), adapters_dir=dropped, store=store).client
    assert {e["name"] for e in client.get("/adapters").json()} == {"a", "b"}
    shutil.copytree(aside / "a", dropped / "a", dirs_exist_ok=True)
    time.sleep(8 * BRIEF_S)
    assert {e["name"] for e in client.get("/adapters").json()} == {"a", "b"}


def test_a_folder_that_is_removed_beside_others_takes_its_name(start: Start, dropped: Path) -> None:
    client = start()
    shutil.rmtree(dropped / "a")
    assert eventually(lambda: client.get("/adapters/a").status_code == 404)
    shutil.rmtree(dropped / "b")
    time.sleep(6 * BRIEF_S)
    assert client.get("/adapters/b").status_code == 200
    assert client.delete("/adapters/b").status_code == 204


def test_but_nothing_that_a_client_has_put_by_that_name(
    start: Start, dropped: Path, folders: dict[str, Path]
) -> None:
    client = start()
    version = staged(client, "a", folders["b"])
    shutil.rmtree(dropped / "a")
    assert eventually(lambda: "a" in client.get("/readyz").json()["folder_gone"])
    assert version in {e["version"] for e in client.get("/adapters/a/versions").json()}
    assert client.get("/adapters/a").json()["tokens_per_s"] == 500
    shutil.copytree(folders["a"], dropped / "a")
    assert eventually(lambda: client.get("/readyz").json()["folder_gone"] == {})
    assert client.delete("/adapters/a").status_code == 204


@pytest.mark.parametrize("code", [errno.EACCES, errno.EMFILE])
def test_what_cannot_be_read_is_told_as_what_it_is(
    start: Start, dropped: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    client = start()

    def refuse(path: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(files.os, "scandir", refuse)
    assert eventually(
        lambda: any(
            os.strerror(code) in why for why in client.get("/readyz").json()["broken"].values()
        )
    )
    assert client.get("/adapters/a").status_code == 200
    monkeypatch.undo()
    assert eventually(lambda: client.get("/readyz").json()["broken"] == {})


def test_a_folder_that_may_not_be_read_is_told_as_such_and_the_others_are_served(
    start: Start, dropped: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start()
    is_file = Path.is_file

    def refused(path: Path) -> bool:
        if path.parent.name == "c":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    shutil.copytree(folders["c"], dropped / "c")
    assert eventually(
        lambda: "Permission denied" in client.get("/readyz").json()["broken"].get("c", "")
    )
    put(client, "d", folders["c"])
    assert client.get("/adapters/b").status_code == 200


def test_a_folder_that_came_back_as_it_was_is_served_again(
    start: Start, dropped: Path, folders: dict[str, Path]
) -> None:
    client = start()
    version = client.get("/adapters/a").json()["version"]
    shutil.rmtree(dropped / "a")
    assert eventually(lambda: client.get("/adapters/a").status_code == 404)
    shutil.copytree(folders["a"], dropped / "a")
    assert eventually(lambda: client.get("/adapters/a").status_code == 200)
    assert client.get("/adapters/a").json()["version"] == version


def test_a_folder_that_went_while_the_server_was_off_takes_its_name(
    serve: Serve, tiny_bert: Path, dropped: Path, tmp_path: Path
) -> None:
    store = tmp_path / "kept"
    serve(model=str(tiny_bert), adapters_dir=dropped, store=store).stop()
    shutil.rmtree(dropped / "a")
    client = serve(model=str(tiny_bert), adapters_dir=dropped, store=store).client
    assert [e["name"] for e in client.get("/adapters").json()] == ["b"]


def test_a_folder_whose_name_is_no_adapters_is_told_as_such(start: Start, dropped: Path) -> None:
    (dropped / "a").rename(dropped / "Not A Name")
    client = start()
    assert "is no adapter name" in client.get("/readyz").json()["broken"]["Not A Name"]
    assert [e["name"] for e in client.get("/adapters").json()] == ["b"]


def test_what_a_full_disk_kept_out_at_a_start_is_served_when_there_is_room(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if Path(target).parent.name == "versions":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", full)
        client = start()
        assert set(client.get("/readyz").json()["broken"]) == {"a", "b"}
    assert eventually(lambda: client.get("/readyz").json()["broken"] == {})
    assert client.get("/adapters/a").status_code == 200
