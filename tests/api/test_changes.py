"""Who changed what: each changing route writes one line and one record, made or refused."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Mount

from app.api.access import Access, access_of
from app.api.middleware.record_changes import KEPT_AN_HOUR
from tests.conftest import Serve
from tests.live import LiveServer, live_server
from tests.oracles import files_of

KEYS = {"alice": "key-of-alice", "bob": "key-of-bob", "web": "key-of-the-web"}
ID = {"X-Request-Id": "asked-1"}


def by(who: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[who]}", **ID}


@pytest.fixture(scope="module")
def server(
    tiny_bert: Path, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("changes")
    (folder / "admins").write_text(
        f"{KEYS['alice']} name=alice\n{KEYS['bob']} name=bob adapters=b*\n"
    )
    (folder / "keys").write_text(f"{KEYS['web']} name=web\n")
    server = live_server(
        model=str(tiny_bert),
        store=folder / "store",
        adapters_dir=folder / "none",
        admin_keys_file=folder / "admins",
        api_keys_file=folder / "keys",
        source_dirs=str(folders["a"].parent),
    )
    yield server
    server.stop()


def changing(server: LiveServer) -> list[tuple[str, str, Access]]:
    """(method, path, access) of each route that changes names, from the app's own table."""
    return [
        (method, route.path, access_of(route))
        for route in server.app.routes
        if not isinstance(route, Mount)
        for method in sorted(route.methods)
        if access_of(route).changes
    ]


def audited(server: LiveServer, **query: Any) -> list[dict[str, Any]]:
    answer = server.client.get("/audit", params=query, headers=by("alice"))
    answer.raise_for_status()
    records: list[dict[str, Any]] = answer.json()["records"]
    return records


def put(server: LiveServer, name: str, folder: Path, **query: Any) -> str:
    """The version."""
    answer = server.client.put(
        f"/adapters/{name}", files=files_of(folder), params=query, headers=by("alice")
    )
    answer.raise_for_status()
    version: str = answer.json()["version"]
    return version


def two_versions(server: LiveServer, name: str, folders: dict[str, Path]) -> tuple[str, str]:
    return put(server, name, folders["b"]), put(server, name, folders["a"])


Done = tuple[str | None, str | None]
Client = Callable[..., httpx.Response]


def do_put(server: LiveServer, ask: Client, name: str, folders: dict[str, Path]) -> Done:
    return None, ask("PUT", f"/adapters/{name}", files=files_of(folders["a"])).json()["version"]


def do_delete(server: LiveServer, ask: Client, name: str, folders: dict[str, Path]) -> Done:
    version = put(server, name, folders["a"])
    ask("DELETE", f"/adapters/{name}")
    return version, None


def do_labels(server: LiveServer, ask: Client, name: str, folders: dict[str, Path]) -> Done:
    before = put(server, name, folders["c"])
    body = {"labels": ["x", "y", "z"]}
    return before, ask("PUT", f"/adapters/{name}/labels", json=body).json()["version"]


def do_merge(server: LiveServer, ask: Client, name: str, folders: dict[str, Path]) -> Done:
    version = put(server, name, folders["a"])
    ask("POST", f"/adapters/{name}/merge")
    return version, version


def do_unmerge(server: LiveServer, ask: Client, name: str, folders: dict[str, Path]) -> Done:
    version = put(server, name, folders["a"])
    server.client.post(f"/adapters/{name}/merge", headers=by("alice"))
    ask("POST", f"/adapters/{name}/unmerge")
    return version, version


def do_compose(server: LiveServer, ask: Client, name: str, folders: dict[str, Path]) -> Done:
    before = put(server, name, folders["a"])
    body = {"adapters": [name], "weights": [0.5]}
    return before, ask("POST", f"/adapters/{name}/compose", json=body).json()["version"]


def do_rollback(server: LiveServer, ask: Client, name: str, folders: dict[str, Path]) -> Done:
    first, second = two_versions(server, name, folders)
    ask("POST", f"/adapters/{name}/rollback")
    return second, first


def do_canary(server: LiveServer, ask: Client, name: str, folders: dict[str, Path]) -> Done:
    first, second = two_versions(server, name, folders)
    ask("POST", f"/adapters/{name}/canary", json={"version": first, "percent": 5})
    return second, first


def do_shadow(server: LiveServer, ask: Client, name: str, folders: dict[str, Path]) -> Done:
    first, second = two_versions(server, name, folders)
    ask("POST", f"/adapters/{name}/shadow", json={"version": first})
    return second, first


def on_trial(server: LiveServer, name: str, folders: dict[str, Path]) -> tuple[str, str]:
    first, second = two_versions(server, name, folders)
    body = {"version": first, "percent": 5}
    server.client.post(f"/adapters/{name}/canary", json=body, headers=by("alice"))
    return first, second


def do_promote(server: LiveServer, ask: Client, name: str, folders: dict[str, Path]) -> Done:
    first, second = on_trial(server, name, folders)
    ask("POST", f"/adapters/{name}/promote")
    return second, first


def do_abort(server: LiveServer, ask: Client, name: str, folders: dict[str, Path]) -> Done:
    first, second = on_trial(server, name, folders)
    ask("POST", f"/adapters/{name}/abort")
    return first, second


def do_load(server: LiveServer, ask: Client, name: str, folders: dict[str, Path]) -> Done:
    source = {"lora_name": name, "lora_path": str(folders["a"])}
    answer = ask("POST", "/v1/load_lora_adapter", json=source)
    return None, answer.headers["etag"].strip('"')


def do_unload(server: LiveServer, ask: Client, name: str, folders: dict[str, Path]) -> Done:
    version = put(server, name, folders["a"])
    ask("POST", "/v1/unload_lora_adapter", json={"lora_name": name})
    return version, None


DO = {
    ("PUT", "/adapters/{name}"): do_put,
    ("DELETE", "/adapters/{name}"): do_delete,
    ("PUT", "/adapters/{name}/labels"): do_labels,
    ("POST", "/adapters/{name}/merge"): do_merge,
    ("POST", "/adapters/{name}/unmerge"): do_unmerge,
    ("POST", "/adapters/{name}/compose"): do_compose,
    ("POST", "/adapters/{name}/rollback"): do_rollback,
    ("POST", "/adapters/{name}/canary"): do_canary,
    ("POST", "/adapters/{name}/shadow"): do_shadow,
    ("POST", "/adapters/{name}/promote"): do_promote,
    ("POST", "/adapters/{name}/abort"): do_abort,
    ("POST", "/v1/load_lora_adapter"): do_load,
    ("POST", "/v1/unload_lora_adapter"): do_unload,
}


def test_each_changing_route_writes_one_line_and_one_record(
    server: LiveServer,
    folders: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
    subtests: pytest.Subtests,
) -> None:
    caplog.set_level(logging.INFO, logger="app.changes")
    sent: list[tuple[str, str]] = []

    def ask(verb: str, where: str, **body: Any) -> httpx.Response:
        caplog.clear()
        sent[:] = [(verb, where)]
        answer = server.client.request(verb, where, headers=by("alice"), **body)
        assert answer.status_code < 300, answer.text
        return answer

    for method, path, access in changing(server):
        action = access.changes or ""
        name = path.rpartition("/")[2].strip("{}").replace("_", "-") + f"-{method.lower()}"
        with subtests.test(action=action):
            before, after = DO[method, path](server, ask, name, folders)
            assert sent == [(method, path.replace("{name}", name))]
            wanted = {
                "action": action,
                "name": name,
                "from": before,
                "to": after,
                "outcome": "changed",
                "error_type": None,
                "by": "alice",
                "address": "127.0.0.1",
                "request_id": "asked-1",
            }
            assert [r.args for r in caplog.records if r.name == "app.changes"] == [wanted]
            newest = audited(server, name=name)[0]
            assert {k: v for k, v in newest.items() if k not in ("id", "time")} == wanted


def test_every_route_that_admins_change_with_is_recorded(server: LiveServer) -> None:
    for route in server.app.routes:
        if isinstance(route, Mount):
            continue
        access = access_of(route)
        changes = access.needs == "admin key" and not route.methods <= {"GET", "HEAD"}
        assert (access.changes is not None) == changes, route.path


def test_each_refused_change_is_one_line_with_its_type_and_reason(
    server: LiveServer,
    folders: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
    subtests: pytest.Subtests,
) -> None:
    put(server, "some", folders["a"])
    for method, path, access in changing(server):
        for who, kind in (({}, "unauthenticated"), (by("web"), "forbidden")):
            with subtests.test(action=access.changes, kind=kind):
                caplog.clear()
                server.client.request(method, path.replace("{name}", "some"), headers=who | ID)
                (line,) = [r.args for r in caplog.records if r.name == "app.changes"]
                assert isinstance(line, dict)
                assert (line["outcome"], line["error_type"]) == ("refused", kind)
                named = (
                    "some" if "{name}" in path else None
                )  # else it is in a body that nobody reads
                assert (line["action"], line["name"]) == (access.changes, named)
                assert line["by"] == ("web" if who else None)
                assert line["request_id"] == "asked-1"
                assert "key" in line["reason"]


def test_a_refused_upload_is_recorded_with_what_it_would_have_been(
    server: LiveServer, folders: dict[str, Path]
) -> None:
    version = put(server, "kept", folders["a"])
    other = server.client.put(
        "/adapters/kept",
        files=files_of(folders["b"]),
        headers=by("alice") | {"If-Match": '"another"'},
    )
    assert other.status_code == 412
    refused, made = audited(server, name="kept")
    assert (refused["outcome"], refused["error_type"]) == ("refused", "precondition_failed")
    assert refused["from"] == version == made["to"]
    assert refused["to"] not in (None, version)


def test_what_changes_nothing_is_recorded_as_such(
    server: LiveServer, folders: dict[str, Path]
) -> None:
    put(server, "same", folders["a"])
    put(server, "same", folders["a"])
    put(server, "same", folders["b"], dry_run=True)
    put(server, "same", folders["b"], stage=True)
    put(server, "same", folders["b"], stage=True)
    told = [(r["action"], r["outcome"]) for r in reversed(audited(server, name="same"))]
    assert told == [
        ("put", "changed"),
        ("put", "unchanged"),
        ("put", "unchanged"),
        ("stage", "changed"),
        ("stage", "unchanged"),
    ]


def test_strangers_cannot_fill_the_audit(server: LiveServer) -> None:
    before = len(audited(server, limit=1000))
    for _ in range(30):
        server.client.delete("/adapters/some")
        server.client.delete("/adapters/some", headers={"Authorization": "Bearer unknown"})
    assert len(audited(server, limit=1000)) == before
    for _ in range(KEPT_AN_HOUR + 10):
        server.client.delete("/adapters/some", headers=by("web"))
    kept = [r for r in audited(server, limit=1000) if r["by"] == "web"]
    assert len(kept) == KEPT_AN_HOUR


def test_the_audit_is_paged_newest_first_and_by_name(
    server: LiveServer, folders: dict[str, Path]
) -> None:
    for name in ("paged-a", "paged-b"):
        put(server, name, folders["a"])
        server.client.delete(f"/adapters/{name}", headers=by("alice"))
    everything = audited(server, limit=1000)
    assert [r["action"] for r in everything[:4]] == ["delete", "put", "delete", "put"]
    assert [r["id"] for r in everything] == sorted((r["id"] for r in everything), reverse=True)
    pages, where = [], "/audit?limit=3"
    while where:
        answer = server.client.get(where, headers=by("alice"))
        pages += answer.json()["records"]
        where = answer.links["next"]["url"] if "next" in answer.links else ""
        assert bool(where) == (answer.json()["next"] is not None)
    assert pages == everything
    assert {r["name"] for r in audited(server, name="paged-a")} == {"paged-a"}
    for wrong in ({"limit": 0}, {"before": "x"}, {"nmae": "a"}):
        answer = server.client.get("/audit", params=wrong, headers=by("alice"))
        assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


def test_an_admin_of_some_adapters_sees_their_records_only(
    server: LiveServer, folders: dict[str, Path]
) -> None:
    put(server, "b-seen", folders["a"])
    put(server, "hidden", folders["a"])
    answer = server.client.get("/audit?limit=1000", headers=by("bob"))
    names = {record["name"] for record in answer.json()["records"]}
    assert "b-seen" in names
    assert all(name.startswith("b") for name in names)


def test_the_audit_survives_a_restart_and_knows_folders_that_come_and_go(
    serve: Serve, tiny_bert: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    dropped = tmp_path / "dropped"
    shutil.copytree(folders["a"], dropped / "x")
    shutil.copytree(folders["b"], dropped / "y")
    first = serve(model=str(tiny_bert), adapters_dir=dropped)
    version = first.client.get("/adapters/x").json()["version"]
    first.stop()
    shutil.rmtree(dropped / "x")
    second = serve(model=str(tiny_bert), adapters_dir=dropped)
    gone, came = second.client.get("/audit?name=x").json()["records"]
    assert (gone["action"], gone["from"], gone["to"]) == ("folder_gone", version, None)
    assert (came["action"], came["from"], came["to"]) == ("folder", None, version)
    assert came["by"] is came["address"] is came["request_id"] is None


def test_a_change_is_made_and_logged_where_the_audit_cannot_be_written(
    serve: Serve,
    tiny_bert: Path,
    folders: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve(model=str(tiny_bert))
    (tmp_path / "store" / "audit").write_text("no folder")
    answer = server.client.put("/adapters/x", files=files_of(folders["a"]))
    assert answer.status_code == 201
    assert "the audit lacks a change" in caplog.text


def test_an_address_is_an_address_whatever_a_proxy_says(
    server: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    for given, logged in (("10.1.2.3", "10.1.2.3"), ("a secret", None), ("::1%secret", "::1")):
        caplog.clear()
        server.client.delete("/adapters/some", headers={"X-Forwarded-For": given})
        (line,) = [r.args for r in caplog.records if r.name == "app.changes"]
        assert isinstance(line, dict)
        assert line["address"] == logged
