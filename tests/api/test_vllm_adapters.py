"""vLLM's load_lora_adapter and unload_lora_adapter do what PUT and DELETE do."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest

from tests.conftest import Serve
from tests.oracles import put


@pytest.fixture
def client(serve: Serve, tiny_bert: Path, folders: dict[str, Path], tmp_path: Path) -> httpx.Client:
    for name in ("a", "c"):
        shutil.copytree(folders[name], tmp_path / "allowed" / name)
    shutil.copytree(folders["b"], tmp_path / "secret")
    return serve(model=str(tiny_bert), source_dirs=str(tmp_path / "allowed")).client


def load(client: httpx.Client, name: str, path: Path | str, **more: object) -> httpx.Response:
    body = {"lora_name": name, "lora_path": str(path), **more}
    return client.post("/v1/load_lora_adapter", json=body)


def unload(client: httpx.Client, name: str) -> httpx.Response:
    return client.post("/v1/unload_lora_adapter", json={"lora_name": name, "lora_int_id": 1})


def test_a_loaded_adapter_is_the_same_version_as_one_that_was_put(
    client: httpx.Client, folders: dict[str, Path], tmp_path: Path
) -> None:
    answer = load(client, "one", tmp_path / "allowed" / "a")
    assert answer.status_code == 200, answer.text
    assert answer.text == "Success: LoRA adapter 'one' added successfully."
    assert answer.headers["content-type"].startswith("text/plain")
    digest = put(client, "two", folders["a"])["version"]
    assert client.get("/adapters/one").json()["version"] == digest
    assert answer.headers["etag"] == f'"{digest}"'
    vectors = [
        client.post("/v1/embeddings", json={"model": name, "input": "good"}).json()["data"]
        for name in ("one", "two")
    ]
    assert vectors[0] == vectors[1]


def test_a_name_that_is_loaded_stays_unless_it_is_replaced_in_place(
    client: httpx.Client, tmp_path: Path
) -> None:
    load(client, "one", tmp_path / "allowed" / "a")
    before = client.get("/adapters/one").json()["version"]
    again = load(client, "one", tmp_path / "allowed" / "c")
    assert again.status_code == 400
    assert again.json()["error"]["param"] == "lora_name"
    assert "has already been loaded" in again.json()["error"]["message"]
    assert client.get("/adapters/one").json()["version"] == before
    assert load(client, "one", tmp_path / "allowed" / "c", load_inplace=True).status_code == 200
    assert client.get("/adapters/one").json()["version"] != before


def test_unloading_ends_the_name_and_an_unknown_one_is_404(
    client: httpx.Client, tmp_path: Path
) -> None:
    load(client, "one", tmp_path / "allowed" / "a")
    answer = unload(client, "one")
    assert answer.text == "Success: LoRA adapter 'one' removed successfully."
    assert client.get("/adapters/one").status_code == 404
    gone = unload(client, "one")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


def test_only_what_a_put_may_name_is_read(client: httpx.Client, tmp_path: Path) -> None:
    for path, status in (
        (tmp_path / "secret", 403),
        (tmp_path / "allowed" / ".." / "secret", 403),
        ("relative/folder", 403),
        ("hf:org/repo", 403),
        (tmp_path / "allowed" / "nothing", 400),
    ):
        answer = load(client, "one", path)
        assert answer.status_code == status, path
        assert answer.json()["error"]["message"], path
    assert client.get("/adapters").json() == []


@pytest.mark.parametrize("name", ["../x", "base", "", "UPPER", "a/b"])
def test_what_is_no_name_is_refused(client: httpx.Client, tmp_path: Path, name: str) -> None:
    for answer in (load(client, name, tmp_path / "allowed" / "a"), unload(client, name)):
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_name")


def test_what_had_to_be_assumed_is_in_the_log(
    client: httpx.Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(client, "three", tmp_path / "allowed" / "c")
    assert any("three was loaded with " in message for message in caplog.messages)
