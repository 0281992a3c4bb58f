"""PUT in every packing, GET, HEAD, DELETE, dry run, ETag, versions, restart, watched folder."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.adapters.files import adapter_folders
from app.catalog import watch
from tests.adapters.made import peft_file
from tests.conftest import Serve
from tests.live import eventually
from tests.oracles import files_of, make_adapter, put


def tarred(folder: Path, mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, arcname="my-adapter")
    return out.getvalue()


def zipped(folder: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"checkpoint/{path.name}")
    return out.getvalue()


SETTLED_S = 3.5  # until a folder at rest has surely been looked at, as _settle has it


@pytest.fixture(autouse=True)
def _settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SETTLE_S", 2.0)


PACKINGS: dict[str, Callable[[Path], dict[str, object]]] = {
    "multipart": lambda f: {"files": files_of(f)},
    "tar": lambda f: {"content": tarred(f, "w"), "headers": {"content-type": "application/x-tar"}},
    "tar.gz": lambda f: {"content": tarred(f, "w:gz")},
    "zip": lambda f: {"content": zipped(f), "headers": {"content-type": "application/zip"}},
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_packing_of_a_folder_is_the_same_version(
    client: httpx.Client, folders: dict[str, Path], packing: str
) -> None:
    wanted = put(client, "plain", folders["c"])
    answer = client.put("/adapters/packed", **PACKINGS[packing](folders["c"]))
    assert answer.status_code in (200, 201), answer.text
    got = answer.json()
    assert got["version"] == wanted["version"]
    assert (got["layout"], got["rank"], got["scale"]) == ("peft", 4, 4.0)
    assert got["targets"] == {"query": 2, "value": 2}
    assert got["tensors"] == {"in_file": 10, "used": 10, "ignored": []}
    assert got["task"] == "classify"
    assert got["delta"]["relative"] > 0
    assert len(got["delta"]["layers"]) == 2


def test_bare_bytes_need_alpha_and_take_it_from_the_query(client: httpx.Client) -> None:
    refused = client.put("/adapters/bare", content=peft_file())
    assert (refused.status_code, refused.json()["error_type"]) == (422, "adapter_rejected")
    assert "?alpha=16" in refused.json()["error"]
    taken = client.put("/adapters/bare?alpha=8&pooling=cls&normalize=false", content=peft_file())
    assert taken.status_code == 201
    assert (taken.json()["scale"], taken.json()["pooling"]) == (2.0, "cls")


def test_statuses_headers_and_conditions_of_put(
    client: httpx.Client, folders: dict[str, Path]
) -> None:
    first = client.put("/adapters/x", files=files_of(folders["a"]))
    etag = first.headers["etag"]
    assert (first.status_code, first.headers["location"]) == (201, "/adapters/x")
    assert etag == f'"{first.json()["version"]}"'

    again = client.put("/adapters/x", files=files_of(folders["a"]))
    assert (again.status_code, again.json()["unchanged"]) == (200, True)

    files = files_of(folders["b"])
    for headers in ({"If-None-Match": "*"}, {"If-Match": '"0000"'}):
        refused = client.put("/adapters/x", files=files, headers=headers)
        assert (refused.status_code, refused.json()["error_type"]) == (412, "precondition_failed")
    assert client.head("/adapters/x").headers["etag"] == etag

    replaced = client.put("/adapters/x", files=files, headers={"If-Match": etag})
    assert replaced.status_code == 200
    assert replaced.headers["etag"] != etag
    gone = client.delete("/adapters/x", headers={"If-Match": etag})
    assert gone.status_code == 412
    assert client.delete("/adapters/x").status_code == 204
    assert client.get("/adapters/x").status_code == 404
    assert client.delete("/adapters/x").status_code == 404


def test_a_dry_run_reports_and_changes_nothing(
    client: httpx.Client, folders: dict[str, Path]
) -> None:
    before = client.get("/adapters").json()
    answer = client.put("/adapters/dry?dry_run=true", files=files_of(folders["c"]))
    assert answer.status_code == 200
    assert answer.json()["dry_run"] is True
    assert answer.json()["rank"] == 4
    assert client.get("/adapters").json() == before
    bad = client.put("/adapters/dry?dry_run=true", content=b"nonsense")
    assert bad.status_code == 422


def test_versions_and_rollback(client: httpx.Client, folders: dict[str, Path]) -> None:
    body = {"inputs": "my card is lost"}
    one = put(client, "roll", folders["a"])["version"]
    with_one = client.post("/embed?adapter=roll", json=body).json()
    two = put(client, "roll", folders["b"])["version"]
    listed = client.get("/adapters/roll/versions").json()
    assert [(e["version"], e["current"]) for e in listed] == [(one, False), (two, True)]
    assert client.post(f"/embed?adapter=roll@{one[:12]}", json=body).json() == with_one
    assert client.post("/adapters/roll/rollback").json()["version"] == one
    assert client.post("/embed?adapter=roll", json=body).json() == with_one
    forward = client.post("/adapters/roll/rollback", json={"version": two[:12]})
    assert forward.json()["version"] == two
    missing = client.post("/adapters/roll/rollback", json={"version": "0" * 12})
    assert (missing.status_code, missing.json()["error_type"]) == (404, "version_not_found")


@pytest.mark.parametrize("name", ["base", "Upper", "-x", "a" * 64, "%2e%2e", "a b"])
def test_an_impossible_name_is_refused(
    client: httpx.Client, folders: dict[str, Path], name: str
) -> None:
    answer = client.put(f"/adapters/{name}", files=files_of(folders["a"]))
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


def test_a_misspelled_parameter_of_an_upload_is_refused(client: httpx.Client) -> None:
    answer = client.put("/adapters/typo?aplha=16", content=peft_file())
    assert (answer.status_code, answer.json()["problems"][0]["field"]) == (422, "aplha")


def test_labels_come_from_the_query_before_the_config(
    client: httpx.Client, folders: dict[str, Path]
) -> None:
    answer = put(client, "named", folders["c"], labels="bad,good,so-so")
    assert answer["labels"] == ["bad", "good", "so-so"]
    got = client.post("/classify?adapter=named", json={"inputs": "good"}).json()
    assert {e["label"] for e in got} == {"bad", "good", "so-so"}
    wrong = client.put("/adapters/named?labels=x,y", files=files_of(folders["c"]))
    assert wrong.status_code == 422


def test_uploads_and_their_names_survive_a_restart(
    serve: Serve, tiny_bert: Path, folders: dict[str, Path]
) -> None:
    server = serve(model=str(tiny_bert))
    put(server.client, "a", folders["a"])
    put(server.client, "gone", folders["b"])
    server.client.delete("/adapters/gone")
    before = server.client.get("/adapters").json()
    answer = server.post("/embed?adapter=a", inputs="good")
    server.stop()
    again = serve(model=str(tiny_bert))
    assert again.client.get("/adapters").json() == before
    assert again.post("/embed?adapter=a", inputs="good") == answer


def test_folders_are_served_at_start_and_while_running(
    serve: Serve, tiny_bert: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    dropped = tmp_path / "dropped"
    shutil.copytree(folders["a"], dropped / "one")
    server = serve(model=str(tiny_bert), adapters_dir=dropped)
    client = server.client
    first = client.get("/adapters/one").json()["version"]
    shutil.copytree(folders["b"], dropped / "two")
    assert eventually(lambda: client.get("/adapters/two").status_code == 200)
    shutil.copytree(folders["b"], dropped / "one", dirs_exist_ok=True)
    assert eventually(lambda: client.get("/adapters/one").json()["version"] != first)
    client.delete("/adapters/two")
    server.stop()
    again = serve(model=str(tiny_bert), adapters_dir=dropped)
    names = [e["name"] for e in again.client.get("/adapters").json()]
    assert names == ["one"]  # what was deleted stays deleted until its folder's content is new


def test_a_put_after_a_folder_wins_and_a_new_folder_after_that(
    serve: Serve, tiny_bert: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    dropped = tmp_path / "dropped"
    shutil.copytree(folders["a"], dropped / "x")
    client = serve(model=str(tiny_bert), adapters_dir=dropped).client
    uploaded = put(client, "x", folders["b"])["version"]
    (dropped / "x" / "unrelated.txt").write_text("touched")
    time.sleep(SETTLED_S)
    assert client.get("/adapters/x").json()["version"] == uploaded
    make_adapter(tiny_bert, dropped / "x", 9, scale=4)
    assert eventually(lambda: client.get("/adapters/x").json()["version"] != uploaded)


def test_a_broken_folder_is_named_and_the_rest_is_served(
    serve: Serve, tiny_bert: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    dropped = tmp_path / "dropped"
    shutil.copytree(folders["a"], dropped / "good")
    shutil.copytree(folders["a"], dropped / "bad")
    (dropped / "bad" / "adapter_model.safetensors").write_bytes(b"\x80\x04pickle")
    client = serve(model=str(tiny_bert), adapters_dir=dropped).client
    ready = client.get("/readyz").json()
    assert ready["adapters"] == 1
    assert "pickle" in ready["broken"]["bad"]
    answer = client.post("/embed?adapter=bad", json={"inputs": "x"})
    assert answer.status_code == 404
    assert "pickle" in answer.json()["error"]


def test_an_old_version_is_read_from_the_store_when_memory_has_let_go_of_it(
    client: httpx.Client,
) -> None:
    body = {"inputs": "my card is lost"}
    answers = {}
    for alpha in range(1, 25):  # more than stay resident
        answer = client.put(f"/adapters/many?alpha={alpha}", content=peft_file())
        digest = answer.json()["version"]
        answers[digest] = client.post("/embed?adapter=many", json=body).json()
    assert len(answers) == 24
    for digest, wanted in answers.items():
        assert client.post(f"/embed?adapter=many@{digest[:12]}", json=body).json() == wanted
    client.delete("/adapters/many")
    gone = client.post(f"/embed?adapter=many@{digest[:12]}", json=body)
    assert gone.json()["error_type"] == "adapter_not_found"


def test_a_damaged_store_starts_names_what_is_broken_and_is_healed_by_a_put(
    serve: Serve, tiny_bert: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    store = tmp_path / "store"
    server = serve(model=str(tiny_bert), store=store)
    first = put(server.client, "a", folders["a"])["version"]
    second = put(server.client, "a", folders["b"])["version"]
    put(server.client, "c", folders["c"])
    put(server.client, "fine", folders["c"])
    server.stop()
    (store / "versions" / second / "adapter_model.safetensors").write_bytes(b"x")
    (store / "names" / "c.json").write_text('{"ver')
    server = serve(model=str(tiny_bert), store=store)
    client = server.client
    assert set(client.get("/readyz").json()["broken"]) == {"a", "c"}
    assert client.get("/adapters/fine").status_code == 200
    assert client.get("/adapters/a").status_code == 404
    assert [e["version"] for e in client.get("/adapters/a/versions").json()] == [first, second]
    assert client.post("/adapters/a/rollback").json()["version"] == first
    put(client, "c", folders["c"])
    put(client, "a", folders["b"])
    assert client.get("/readyz").json()["broken"] == {}
    server.stop()
    client = serve(model=str(tiny_bert), store=store).client
    assert client.get("/readyz").json()["broken"] == {}
    assert client.get("/adapters/a").json()["version"] == second


def test_a_name_damaged_while_serving_harms_no_other(
    serve: Serve, tiny_bert: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    store, dropped = tmp_path / "store", tmp_path / "dropped"
    dropped.mkdir()
    client = serve(model=str(tiny_bert), store=store, adapters_dir=dropped).client
    for name in ("a", "b", "zz"):
        put(client, name, folders["a"])
    (store / "names" / "zz.json").write_text("[]")
    assert client.delete("/adapters/a").status_code == 204
    (store / "names" / "zz.json").write_text("{}")
    shutil.copytree(folders["b"], dropped / "zz")
    shutil.copytree(folders["b"], dropped / "zzz")
    assert eventually(lambda: client.get("/adapters/zzz").status_code == 200)
    assert client.get("/adapters/b").status_code == 200


def test_a_folder_that_is_made_anew_or_removed_is_noticed(
    serve: Serve, tiny_bert: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    dropped = tmp_path / "dropped"
    (dropped / "bad").mkdir(parents=True)
    (dropped / "bad" / "adapter_model.safetensors").write_bytes(b"xx")
    client = serve(model=str(tiny_bert), adapters_dir=dropped).client
    assert "bad" in client.get("/readyz").json()["broken"]
    shutil.rmtree(dropped)
    time.sleep(1)
    shutil.copytree(folders["a"], dropped / "fresh")
    assert eventually(lambda: client.get("/adapters/fresh").status_code == 200)
    assert client.get("/readyz").json()["broken"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("backwards", [False, True])
def test_a_folder_that_is_copied_slowly_is_served_once_and_goes_with_its_removal(
    serve: Serve, tiny_bert: Path, tmp_path: Path, folders: dict[str, Path], backwards: bool
) -> None:
    dropped = tmp_path / "dropped"
    (dropped / "slow").mkdir(parents=True)
    source = shutil.copytree(folders["c"], tmp_path / "source")
    (source / "config.json").write_text('{"id2label": {"0": "x", "1": "y", "2": "z"}}')
    shutil.copytree(
        folders["a"], dropped / "other"
    )  # the last folder's removal would remove no name
    client = serve(model=str(tiny_bert), adapters_dir=dropped).client
    names = ("adapter_model.safetensors", "adapter_config.json", "config.json")
    for name in sorted(names, reverse=backwards):
        content = (source / name).read_bytes()
        for piece in (content[: len(content) // 2], content[len(content) // 2 :]):
            with (dropped / "slow" / name).open("ab") as file:
                file.write(piece)
            time.sleep(0.6)
            assert client.get("/adapters/slow").status_code == 404
    assert eventually(lambda: client.get("/adapters/slow").status_code == 200)
    assert client.get("/adapters/slow").json()["labels"] == ["x", "y", "z"]
    assert [e["how"] for e in client.get("/adapters/slow/versions").json()] == ["folder"]
    assert client.get("/readyz").json()["broken"] == {}
    shutil.rmtree(dropped / "slow")
    assert eventually(lambda: client.get("/adapters/slow").status_code == 404)
    put(client, "slow", folders["a"])
    shutil.copytree(folders["b"], dropped / "slow")
    assert eventually(lambda: len(client.get("/adapters/slow/versions").json()) == 2)
    put(client, "slow", folders["b"])  # what the folder brought is now the client's as well
    shutil.rmtree(dropped / "slow")
    time.sleep(SETTLED_S)
    assert client.get("/adapters/slow").status_code == 200


def test_a_folder_that_cannot_be_read_keeps_no_other_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bad", ".hidden", "good"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    is_file = Path.is_file

    def denied(path: Path) -> bool:
        if path.parent.name == "bad":
            raise PermissionError
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", denied)
    assert adapter_folders(tmp_path) == {"bad", "good"}


@pytest.mark.slow
def test_a_folders_name_is_the_folders_after_a_rollback_too(
    serve: Serve, tiny_bert: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    dropped = tmp_path / "dropped"
    shutil.copytree(folders["a"], dropped / "x")
    shutil.copytree(folders["a"], dropped / "other")
    client = serve(model=str(tiny_bert), adapters_dir=dropped).client
    shutil.copytree(folders["b"], dropped / "x", dirs_exist_ok=True)
    assert eventually(lambda: len(client.get("/adapters/x/versions").json()) == 2)
    client.post("/adapters/x/rollback")
    client.delete("/adapters/x")
    shutil.move(dropped / "x", tmp_path / "aside")
    time.sleep(SETTLED_S)
    shutil.move(tmp_path / "aside", dropped / "x")
    time.sleep(SETTLED_S)
    assert client.get("/adapters/x").status_code == 404  # deleted, and its content is not new
    shutil.copytree(folders["a"], dropped / "x", dirs_exist_ok=True)
    assert eventually(lambda: client.get("/adapters/x").status_code == 200)
    shutil.copytree(folders["b"], dropped / "x", dirs_exist_ok=True)
    assert eventually(lambda: len(client.get("/adapters/x/versions").json()) == 2)
    client.post("/adapters/x/rollback")
    shutil.rmtree(dropped / "x")
    assert eventually(lambda: client.get("/adapters/x").status_code == 404)


@pytest.mark.slow
def test_a_name_that_is_no_text_keeps_no_other_folder_out(
    serve: Serve, tiny_bert: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    dropped = tmp_path / "dropped"
    odd = os.fsdecode(os.fsencode(dropped) + b"/x-\xff")
    shutil.copytree(folders["a"], odd)
    client = serve(model=str(tiny_bert), adapters_dir=dropped).client
    assert list(client.get("/readyz").json()["broken"]) == ["x-\\udcff"]
    shutil.copytree(folders["b"], dropped / "good")
    assert eventually(lambda: client.get("/adapters/good").status_code == 200)
    shutil.rmtree(odd)
    assert eventually(lambda: client.get("/readyz").json()["broken"] == {})


def test_damaged_files_are_not_given_away(
    serve: Serve, tiny_bert: Path, folders: dict[str, Path]
) -> None:
    server = serve(model=str(tiny_bert))
    version = put(server.client, "x", folders["a"])["version"]
    store = server.app.state.serving.installer.store.root
    weights = store / "versions" / version / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    answer = server.client.get("/adapters/x/files")
    assert (answer.status_code, answer.json()["error_type"]) == (503, "store_unavailable")
    assert "PUT it again" in answer.json()["error"]
    assert server.client.post("/embed?adapter=x", json={"inputs": "a"}).status_code == 200
    assert put(server.client, "x", folders["a"])["version"] == version
    assert server.client.get("/adapters/x/files").status_code == 200


def test_a_parameter_that_is_given_twice_is_refused(client: httpx.Client) -> None:
    answer = client.put("/adapters/x?alpha=16&alpha=8", content=peft_file())
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["field"] == "alpha"


def test_a_pointer_that_cannot_be_believed_is_healed_by_a_put(
    serve: Serve, tiny_bert: Path, folders: dict[str, Path]
) -> None:
    server = serve(model=str(tiny_bert))
    for name in ("a", "b", "c"):
        put(server.client, name, folders["a"])
    server.stop()
    names = server.app.state.serving.installer.store.root / "names"
    raw = json.loads((names / "a.json").read_text())
    del raw["sha256"]
    (names / "a.json").write_text(json.dumps({**raw, "tokens_per_s": "abc", "trial": {"mode": 5}}))
    (names / "b.json").unlink()
    (names / "b.json").mkdir()
    (names / "base.json").write_text("{}")
    (names / "UPPER.json").write_text("{}")
    again = serve(model=str(tiny_bert))
    assert set(again.client.get("/readyz").json()["broken"]) == {"a", "b"}
    assert [e["name"] for e in again.client.get("/adapters").json()] == ["c"]
    for name in ("a", "b"):
        assert again.client.post(f"/embed?adapter={name}", json={"inputs": "a"}).status_code == 404
        put(again.client, name, folders["b"])
        assert again.client.post(f"/embed?adapter={name}", json={"inputs": "a"}).status_code == 200


def test_a_list_is_paged_in_order_and_stays_so_while_names_come_and_go(
    served: httpx.Client, folders: dict[str, Path]
) -> None:
    everything = served.get("/adapters")
    assert [entry["name"] for entry in everything.json()] == ["a", "b", "c"]
    assert everything.headers["x-total-count"] == "3"
    assert "link" not in everything.headers
    first = served.get("/adapters?limit=2")
    assert [entry["name"] for entry in first.json()] == ["a", "b"]
    assert first.headers["x-total-count"] == "3"
    served.delete("/adapters/b")
    put(served, "aa", folders["a"])
    second = served.get(first.links["next"]["url"])
    assert [entry["name"] for entry in second.json()] == ["c"]
    assert "next" not in second.links


def test_a_list_is_filtered_by_name_and_by_state(served: httpx.Client) -> None:
    def names(**query: object) -> list[str]:
        return [entry["name"] for entry in served.get("/adapters", params=query).json()]

    assert names(task="classify") == names(head="true") == ["c"]
    assert names(head="false", limit=1) == ["a"]
    assert names(prefix="b") == names(q="b") == ["b"]
    assert names(merged="true") == names(trial="true") == []
    served.post("/adapters/b/merge")
    assert names(merged="true") == ["b"]
    page = served.get("/adapters?limit=1&merged=false&head=false&q=")
    assert page.headers["x-total-count"] == "1"
    assert served.get("/adapters?limit=1&resident=true").links["next"]["url"] == (
        "/adapters?limit=1&resident=true&after=a"
    )
    for wrong in ({"limit": 0}, {"lmit": 1}, {"task": "x"}):
        assert served.get("/adapters", params=wrong).status_code == 422
