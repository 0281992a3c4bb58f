"""A change that meets another server's: tried again where that is what the client asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app.catalog.local_store import LocalStore
from app.catalog.pointer import Entry, Pointer, moved, now
from tests.conftest import Serve
from tests.live import LiveServer
from tests.oracles import files_of, make_adapter, put

Overtake = Callable[[str], None]


@pytest.fixture
def server(serve: Serve, tiny_bert: Path) -> LiveServer:
    return serve(model=str(tiny_bert))


@pytest.fixture
def overtake(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Overtake:
    """overtake(version): before this server's next move another server points the name there."""
    store: LocalStore = server.app.state.serving.installer.store
    other, move = LocalStore(store.root), store.move
    versions: list[str] = []

    def slow_move(seen: Pointer, after: Pointer) -> Pointer:
        while versions:
            before = other.look(after.name)
            other.move(before, moved(before, Entry(versions.pop(), now(), "other"), 64))
        return move(seen, after)

    monkeypatch.setattr(store, "move", slow_move)
    return versions.append


def test_a_put_and_a_delete_that_are_overtaken_are_done_all_the_same(
    server: LiveServer, overtake: Overtake, tiny_bert: Path, tmp_path: Path
) -> None:
    one, two = (make_adapter(tiny_bert, tmp_path / f"a{i}", i) for i in range(2))
    first = put(server.client, "a", one)["version"]
    overtake(first)
    second = put(server.client, "a", two)["version"]
    assert server.client.get("/adapters/a").json()["version"] == second
    history = server.client.get("/adapters/a/versions").json()
    assert [(e["version"], e["by"]) for e in history] == [
        (first, None), (first, "other"), (second, None)
    ]  # fmt: skip
    overtake(first)
    assert server.client.delete("/adapters/a").status_code == 204
    assert server.client.get("/adapters/a/versions").status_code == 404


def test_an_if_match_that_holds_no_more_is_a_412_and_changes_nothing(
    server: LiveServer, overtake: Overtake, tiny_bert: Path, tmp_path: Path
) -> None:
    one, two = (make_adapter(tiny_bert, tmp_path / f"a{i}", i) for i in range(2))
    first = put(server.client, "a", one)["version"]
    second = put(server.client, "a", two)["version"]
    overtake(first)
    held = {"If-Match": f'"{second}"'}
    answer = server.client.put("/adapters/a", files=files_of(one), headers=held)
    assert (answer.status_code, answer.json()["error_type"]) == (412, "precondition_failed")
    history = server.client.get("/adapters/a/versions").json()
    assert (history[-1]["version"], history[-1]["by"]) == (first, "other")
