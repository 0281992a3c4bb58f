"""Two servers on one bucket: what one is told the other serves, and what they do while it fails."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import httpx
import numpy as np
import obstore
import pytest

from app.catalog.pointer import Entry, Pointer, moved, now
from bert_lora import AsyncClient, Client, NotFound
from tests.catalog.seaweed import Seaweed
from tests.catalog.unreliable import Fault
from tests.live import eventually
from tests.oracles import FP32, files_of, make_adapter
from tests.process import start
from tests.scale.fleet import TEXTS, Adapters, Fleet, ask, check, made_adapters, running

HUNG = Fault("hung")
MANY = 1_050


@pytest.fixture(scope="module")
def adapters(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    return made_adapters(tiny_bert, tmp_path_factory.mktemp("adapters"), 4)


@pytest.fixture(scope="module")
def fleet(
    tiny_bert: Path, seaweed: Seaweed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    with running(seaweed, tmp_path_factory.mktemp("fleet"), 2, model=tiny_bert) as fleet:
        yield fleet


@pytest.fixture
def here(fleet: Fleet) -> httpx.Client:
    return fleet.client(0)


@pytest.fixture
def there(fleet: Fleet) -> httpx.Client:
    return fleet.client(1)


def test_what_is_put_here_is_served_there_at_once(
    adapters: Adapters, here: httpx.Client, there: httpx.Client
) -> None:
    put = adapters.put(here, "new", 0).json()
    assert check(ask(there, "new"), adapters) == put["version"]
    assert there.get("/adapters/new").json()["delta"] == put["delta"]


def test_another_version_is_served_there_soon_and_at_once_to_who_asks_for_its_revision(
    adapters: Adapters, here: httpx.Client, there: httpx.Client
) -> None:
    adapters.put(here, "moves", 0)
    check(ask(there, "moves"), adapters)
    for i in (1, 2, 1):
        put = adapters.put(here, "moves", i).json()
        newest = ask(there, "moves", **{"X-Min-Revision": str(put["revision"])})
        assert check(newest, adapters) == put["version"]
    put = adapters.put(here, "moves", 3).json()
    assert eventually(lambda: check(ask(there, "moves"), adapters) == put["version"])
    beyond = ask(there, "moves", **{"X-Min-Revision": "99"})
    assert (beyond.status_code, beyond.json()["error_type"]) == (412, "precondition_failed")


@pytest.mark.parametrize(
    ("wish", "status"),
    [("1", 200), ("99", 412), ("listed=1", 200), ("listed=99", 412), ("other=99", 200)]
    + [
        ("99, listed=1", 200),
        ("other=1,listed=99", 412),
        ("listed=1, 99", 200),
        ("listed=99, listed=1", 412),
    ]
    + [
        (wrong, 422)
        for wrong in (
            "one",
            "=1",
            "LISTED=1",
            "listed@1=1",
            "listed=",
            "listed=1,",
            "a=b",
            "-1",
            "1" * 17,
        )
    ],
)
def test_a_name_is_asked_for_at_its_own_revision_or_at_that_of_all_others(
    adapters: Adapters, here: httpx.Client, wish: str, status: int
) -> None:
    adapters.put(here, "listed", 0)
    asked = ask(here, "listed", **{"X-Min-Revision": wish})
    assert asked.status_code == status, asked.text
    if status == 422:
        assert "x-min-revision" in asked.text.lower()


def test_what_is_deleted_here_is_gone_there_and_its_revision_goes_on(
    adapters: Adapters, here: httpx.Client, there: httpx.Client
) -> None:
    first = adapters.put(here, "gone", 0).json()
    check(ask(there, "gone"), adapters)
    deleted = here.delete("/adapters/gone")
    revision = int(deleted.headers["X-Revision"])
    assert revision == first["revision"] + 1
    assert ask(there, "gone", **{"X-Min-Revision": str(revision)}).status_code == 404
    assert eventually(lambda: ask(there, "gone").status_code == 404)
    again = adapters.put(there, "gone", 1).json()
    assert again["revision"] == revision + 1
    assert check(ask(here, "gone", **{"X-Min-Revision": str(again["revision"])}), adapters)


def test_of_many_who_put_at_both_each_wins_in_turn_and_none_is_lost(
    adapters: Adapters, fleet: Fleet
) -> None:
    def put(i: int) -> httpx.Response:
        with httpx.Client(base_url=fleet.servers[i % 2].url, timeout=60) as client:
            return adapters.put(client, "raced", i % 4)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(put, range(16)))
    assert {answer.status_code for answer in answers} <= {200, 201}
    changed = [a.json() for a in answers if not a.json().get("unchanged")]
    revisions = [change["revision"] for change in changed]
    assert sorted(revisions) == list(range(1, len(changed) + 1))
    last = max(changed, key=lambda change: change["revision"])
    wanted = {"X-Min-Revision": str(last["revision"])}
    for n in range(2):
        assert check(ask(fleet.client(n), "raced", **wanted), adapters) == last["version"]


def test_if_match_holds_whoever_has_moved_the_name(
    adapters: Adapters, here: httpx.Client, there: httpx.Client
) -> None:
    first = adapters.put(here, "matched", 0)
    second = adapters.put(there, "matched", 1, headers={"If-Match": first.headers["ETag"]})
    assert second.status_code == 200
    late = adapters.put(here, "matched", 2, headers={"If-Match": first.headers["ETag"]})
    assert late.status_code == 412
    back = there.post("/adapters/matched/rollback")
    assert back.json()["version"] == first.json()["version"]
    history = here.get("/adapters/matched/versions").json()
    assert {first.json()["version"], second.json()["version"]} <= {v["version"] for v in history}


def test_a_canary_gives_a_client_the_same_version_at_both(
    adapters: Adapters, fleet: Fleet, here: httpx.Client, there: httpx.Client
) -> None:
    adapters.put(here, "tried", 0)
    staged = adapters.put(there, "tried", 1, params={"stage": "true"}).json()
    begun = here.post(
        "/adapters/tried/canary",
        json={"version": staged["version"], "percent": 50, "sticky_by": "x-user"},
    )
    assert begun.status_code == 200, begun.text
    at_least = {"X-Min-Revision": str(begun.json()["revision"])}
    arms = [
        {
            check(ask(client, "tried", **{"X-User": f"u{i}"}, **at_least), adapters)
            for client in (here, there)
        }
        for i in range(20)
    ]
    assert all(len(versions) == 1 for versions in arms)
    assert len(set.union(*arms)) == 2


def test_the_audit_is_of_both_and_so_is_the_list(
    adapters: Adapters, here: httpx.Client, there: httpx.Client
) -> None:
    adapters.put(here, "audited-1", 0)
    adapters.put(there, "audited-2", 1)
    for client in (here, there):
        records = client.get("/audit").json()["records"]
        assert {"audited-1", "audited-2"} <= {record["name"] for record in records}

    def lists_both(client: httpx.Client) -> bool:
        listed = {one["name"] for one in client.get("/adapters").json()}
        return {"audited-1", "audited-2"} <= listed

    assert eventually(lambda: lists_both(here) and lists_both(there))


def test_what_is_one_servers_is_refused(adapters: Adapters, here: httpx.Client) -> None:
    adapters.put(here, "whole", 0)
    merged = here.post("/adapters/whole/merge")
    assert (merged.status_code, merged.json()["error_type"]) == (409, "merge_not_shared")


def test_a_rate_limit_is_given_in_parts(
    adapters: Adapters, here: httpx.Client, there: httpx.Client
) -> None:
    put = adapters.put(here, "limited", 0, params={"tokens_per_s": 20}).json()
    at_least = {"X-Min-Revision": str(put["revision"])}
    waits = []
    for client in (here, there):
        body = {"inputs": list(range(5, 45))}
        client.post("/embed", params={"adapter": "limited"}, json=body, headers=at_least)
        refused = client.post("/embed", params={"adapter": "limited"}, json=body)
        assert refused.status_code == 429
        waits.append(int(refused.headers["retry-after-ms"]))
    for wait in waits:  # 40 tokens, less a burst of 10, at 10 a second: not at 20
        assert 2_000 < wait < 4_000


def test_while_the_bucket_hangs_what_is_known_is_served_and_nothing_else(
    adapters: Adapters, fleet: Fleet, here: httpx.Client, there: httpx.Client
) -> None:
    known = adapters.put(here, "known", 0).json()["version"]
    adapters.put(here, "unknown", 1)
    check(ask(there, "known"), adapters)
    here.delete("/adapters/unknown")
    with fleet.proxies[1].failing(HUNG):
        assert eventually(lambda: store_up(there) == 0)
        for _ in range(3):
            began = time.monotonic()
            assert check(ask(there, "known"), adapters) == known
            refused = ask(there, "never-seen")
            assert (refused.status_code, refused.json()["error_type"]) == (503, "store_unavailable")
            assert "127.0.0.1" not in refused.text
            changed = adapters.put(there, "known", 2)
            assert changed.status_code == 503
            assert time.monotonic() - began < 10
        assert there.get("/readyz").status_code == 200
        assert there.get("/readyz", params={"verbose": "true"}).json()["store"] != "answers"
        moved_on = adapters.put(here, "known", 3).json()
    assert eventually(lambda: store_up(there) == 1)
    assert eventually(lambda: check(ask(there, "known"), adapters) == moved_on["version"])
    assert ask(there, "never-seen").status_code == 404


def test_while_the_bucket_fails_changes_are_refused_before_they_stand_in_line(
    adapters: Adapters, fleet: Fleet, here: httpx.Client, there: httpx.Client
) -> None:
    put = adapters.put(here, "inline", 0).json()
    adapters.put(here, "inline", 1, params={"stage": "true"})
    check(ask(there, "inline"), adapters)
    with fleet.proxies[1].failing(Fault("error", status=500)):
        assert eventually(lambda: store_up(there) == 0)
        fleet.proxies[1].counts.clear()
        refused = [
            adapters.put(there, "inline", 2),
            there.delete("/adapters/inline"),
            there.put("/adapters/inline/labels", json={"labels": ["no", "yes"]}),
            there.post("/adapters/inline/rollback"),
            there.post("/adapters/inline/compose", json={"adapters": ["inline"]}),
            there.post("/adapters/inline/canary", json={"version": put["version"], "percent": 5}),
            there.post("/adapters/inline/promote"),
        ]
        told = {(answer.status_code, answer.json()["error_type"]) for answer in refused}
        assert told == {(503, "store_unavailable")}, [answer.text for answer in refused]
        assert not [key for key in fleet.proxies[1].counts if key[1] == "names"]
    assert eventually(lambda: store_up(there) == 1)
    assert check(ask(there, "inline"), adapters) == put["version"]


def store_up(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(x for x in lines if x.startswith("bert_lora_store_up ")).split()[1])


def test_a_version_that_is_staged_while_its_name_is_deleted_is_refused(
    adapters: Adapters, fleet: Fleet, here: httpx.Client, there: httpx.Client
) -> None:
    adapters.put(here, "leaves", 0)
    check(ask(there, "leaves"), adapters)
    slow = Fault("slow", "PUT", "versions/", seconds=2.5)  # of a commit, be it the first or not
    with fleet.proxies[1].failing(slow), ThreadPoolExecutor(1) as pool:
        staged = pool.submit(adapters.put, there, "leaves", 2, params={"stage": "true"})
        time.sleep(0.7)
        assert here.delete("/adapters/leaves").status_code == 204
        assert staged.result().status_code == 404
    for client in (here, there):
        assert eventually(lambda client=client: ask(client, "leaves").status_code == 404)
        assert "leaves" not in {one["name"] for one in client.get("/adapters").json()}


def test_a_name_that_was_taken_out_of_the_bucket_and_put_again_is_the_same_at_both(
    seaweed: Seaweed, adapters: Adapters, fleet: Fleet, here: httpx.Client, there: httpx.Client
) -> None:
    for i in range(3):
        adapters.put(here, "again", i)
    check(ask(there, "again"), adapters)
    obstore.delete(seaweed.raw(fleet.prefix), "names/again")
    put = adapters.put(here, "again", 3).json()
    assert put["revision"] == 1
    assert check(ask(here, "again"), adapters) == put["version"]  # at once

    def serves_it(client: httpx.Client) -> bool:
        """The other server may have read the name while it was gone: a 404 until it reads again."""
        answer = ask(client, "again")
        return answer.status_code == 200 and check(answer, adapters) == put["version"]

    for client in (here, there):
        assert eventually(lambda c=client: serves_it(c))


def test_a_servers_own_late_answer_does_not_bring_an_older_version_back(
    adapters: Adapters, fleet: Fleet, here: httpx.Client, there: httpx.Client
) -> None:
    """What another server has put since is seen before this one's own move is answered."""
    adapters.put(here, "late", 0)
    check(ask(there, "late"), adapters)
    with (
        fleet.proxies[1].failing(Fault("slow", "PUT", "epoch", seconds=3.0)),
        ThreadPoolExecutor(1) as pool,
    ):
        older = pool.submit(adapters.put, there, "late", 1)
        assert eventually(lambda: adapters_revision(here, "late") == 2)
        newer = adapters.put(here, "late", 2).json()
        assert older.result().json()["revision"] == 2
    for client in (here, there):
        assert eventually(lambda c=client: adapters_revision(c, "late") == 3)
        assert check(ask(client, "late"), adapters) == newer["version"]


def adapters_revision(client: httpx.Client, name: str) -> int:
    return int(client.get(f"/adapters/{name}").json()["revision"])


def test_a_name_that_is_put_again_during_its_deletion_elsewhere_is_served_by_both(
    adapters: Adapters, fleet: Fleet, here: httpx.Client, there: httpx.Client
) -> None:
    adapters.put(here, "back", 0)
    check(ask(there, "back"), adapters)
    with (
        fleet.proxies[1].failing(Fault("slow", "PUT", "epoch", seconds=2.5)),
        ThreadPoolExecutor(1) as pool,
    ):
        deleted = pool.submit(there.delete, "/adapters/back")
        assert eventually(lambda: here.get("/adapters/back").status_code == 404)
        put = adapters.put(here, "back", 1).json()
        assert deleted.result().status_code == 204
    for client in (here, there):
        assert eventually(
            lambda c=client: "back" in {one["name"] for one in c.get("/adapters").json()}
        )
        assert check(ask(client, "back"), adapters) == put["version"]
    assert here.delete("/adapters/back").status_code == 204
    again = there.delete("/adapters/back")
    assert (again.status_code, again.json()["error_type"]) == (404, "adapter_not_found")


def test_a_version_that_was_just_put_elsewhere_is_found_by_its_digits(
    adapters: Adapters, here: httpx.Client, there: httpx.Client
) -> None:
    adapters.put(here, "pinned", 0)
    check(ask(there, "pinned"), adapters)
    for i in (1, 2, 3):
        version = adapters.put(here, "pinned", i).json()["version"]
        assert check(ask(there, f"pinned@{version[:12]}"), adapters) == version
    unknown = ask(there, f"pinned@{'0' * 12}")
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "version_not_found")


@pytest.mark.parametrize("how", ["compose", "files", "changes"])
def test_what_is_composed_or_taken_is_of_the_revision_that_is_asked_for(
    how: str, adapters: Adapters, here: httpx.Client, there: httpx.Client
) -> None:
    adapters.put(here, "part", 0)
    check(ask(there, "part"), adapters)
    for i in (1, 2, 3):
        put = adapters.put(here, "part", i).json()
        at_least = {"X-Min-Revision": str(put["revision"])}
        if how == "compose":
            body = {"adapters": ["part"]}
            made = there.post("/adapters/made/compose", json=body, headers=at_least)
            assert f"part@{put['version'][:12]}" in str(made.json()["warnings"]), made.text
        elif how == "files":
            files = there.get("/adapters/part/files", headers=at_least)
            assert put["version"] in files.headers["etag"]
        else:
            changes = there.get("/adapters/part/changes", headers=at_least).json()
            assert changes["version"] == put["version"]


def test_a_client_that_has_changed_a_name_gets_it_so_whichever_server_answers(
    adapters: Adapters, fleet: Fleet
) -> None:
    with Client(fleet.servers[0].url) as client:
        assert isinstance(client.core, AsyncClient)
        balanced = client.core._server._client
        versions = [client.put("mine", adapters.folders[i])["version"] for i in (0, 1)]
        check_version = dict(zip(versions, adapters.vectors, strict=False))
        for turn in range(6):
            balanced.base_url = fleet.servers[turn % 2].url  # as a balancer may
            put = client.put("mine", adapters.folders[turn % 2])["version"]
            balanced.base_url = fleet.servers[1 - turn % 2].url
            vectors = client.embed(TEXTS, adapter="mine")
            np.testing.assert_allclose(vectors, check_version[put], **FP32)
            assert client.get("mine")["version"] == put
        client.delete("mine")
        balanced.base_url = fleet.servers[0].url
        with pytest.raises(NotFound):
            client.embed(TEXTS, adapter="mine")


@pytest.mark.parametrize("how", ["sum", "texts", "compose"])
def test_a_client_that_has_changed_several_names_gets_all_of_them_so(
    how: str, adapters: Adapters, fleet: Fleet
) -> None:
    """Each name has a revision of its own, and the other server has to read both again."""
    a, b, made = (f"{how}-{x}" for x in ("a", "b", "made"))
    with Client(fleet.servers[0].url) as client:
        assert isinstance(client.core, AsyncClient)
        balanced = client.core._server._client

        def ask() -> np.ndarray:
            if how == "texts":
                return client.embed(TEXTS[:2], adapter=[a, b])
            return client.embed(TEXTS[:2], adapter=f"{a}:0.5+{b}:0.5" if how == "sum" else made)

        for turn in range(4):
            balanced.base_url = fleet.servers[turn % 2].url
            for i in range(turn + 1):  # so that their revisions are far apart
                put = client.put(a, adapters.folders[i % 2])
            client.put(b, adapters.folders[2 + turn % 2])
            if how != "compose":
                wanted = ask()
            balanced.base_url = fleet.servers[1 - turn % 2].url
            if how == "compose":
                done = client.compose(made, [a, b])
                assert f"{a}@{put['version'][:12]}" in str(done["warnings"])
            else:
                np.testing.assert_allclose(ask(), wanted, **FP32)
        for name in (a, b, *([made] if how == "compose" else [])):
            client.delete(name)


def test_a_servers_own_late_answer_does_not_bring_a_deleted_name_back(
    adapters: Adapters, fleet: Fleet, here: httpx.Client, there: httpx.Client
) -> None:
    adapters.put(here, "gone-late", 0)
    check(ask(there, "gone-late"), adapters)
    slow = Fault("slow", "PUT", "epoch", seconds=3.0)
    with fleet.proxies[1].failing(slow), ThreadPoolExecutor(1) as pool:
        put = pool.submit(adapters.put, there, "gone-late", 1)
        assert eventually(lambda: adapters_revision(here, "gone-late") == 2)
        assert here.delete("/adapters/gone-late").status_code == 204
        assert put.result().json()["revision"] == 2
    assert eventually(lambda: ask(there, "gone-late").status_code == 404)


def test_what_others_move_is_seen_while_many_versions_are_on_their_way(
    tiny_bert: Path,
    adapters: Adapters,
    fleet: Fleet,
    here: httpx.Client,
    there: httpx.Client,
    tmp_path: Path,
) -> None:
    """More than come at the same time: their names wait, and no other."""
    for name in ("goes", "changes"):
        adapters.put(here, name, 0)
        check(ask(there, name), adapters)
    cold = [f"cold{i}" for i in range(40)]
    for i, name in enumerate(cold):
        folder = make_adapter(tiny_bert, tmp_path / name, 100 + i)
        here.put(f"/adapters/{name}", files=files_of(folder)).raise_for_status()
    with (
        fleet.proxies[1].failing(Fault("slow", "GET", "files/", seconds=7)),
        ThreadPoolExecutor(len(cold)) as pool,
    ):
        fleet.proxies[1].counts.clear()
        coming = [pool.submit(ask, there, name) for name in cold]
        time.sleep(1)
        assert here.delete("/adapters/goes").status_code == 204
        assert eventually(lambda: ask(there, "goes").status_code == 404)
        assert there.delete("/adapters/changes").status_code == 204
        asked = fleet.proxies[1].counts["GET", "files"]
        assert 0 < asked <= len(cold)  # so that none has its second file yet
        assert {one.result().status_code for one in coming} == {200}


def test_a_change_that_is_made_after_its_503_is_seen_at_both(
    adapters: Adapters, fleet: Fleet, here: httpx.Client, there: httpx.Client
) -> None:
    """Whoever looks before they repeat it must see it."""
    for i in (0, 1):
        adapters.put(here, "made-late", i)
    check(ask(there, "made-late"), adapters)
    with fleet.proxies[1].failing(Fault("late", "PUT", "names/", seconds=12)):
        unsure = there.post("/adapters/made-late/rollback", timeout=30)
    assert (unsure.status_code, unsure.json()["error_type"]) == (503, "change_unsure")

    def newest() -> str:
        audit = here.get("/audit", params={"name": "made-late", "limit": 1}).json()
        return str(audit["records"][0]["outcome"])

    assert eventually(lambda: newest() == "unsure")
    for server in (there, here):
        assert eventually(lambda at=server: at.get("/adapters/made-late").json()["revision"] == 3)


def test_names_whose_new_versions_take_long_hold_up_no_other(
    tiny_bert: Path,
    adapters: Adapters,
    fleet: Fleet,
    here: httpx.Client,
    there: httpx.Client,
    tmp_path: Path,
) -> None:
    """More than there are threads for: they go on with what they have."""
    slow = [f"moving{i}" for i in range(40)]
    for name in (*slow, "leaves-soon"):
        adapters.put(here, name, 0)
        check(ask(there, name), adapters)
    new = make_adapter(tiny_bert, tmp_path / "new", 900)
    with fleet.proxies[1].failing(Fault("slow", "GET", "files/", seconds=30)):
        for name in slow:
            here.put(f"/adapters/{name}", files=files_of(new)).raise_for_status()
        time.sleep(2.5)  # all of them have been seen to move
        assert here.delete("/adapters/leaves-soon").status_code == 204
        assert eventually(lambda: ask(there, "leaves-soon").status_code == 404, within_s=8)
        assert {ask(there, name).status_code for name in slow} == {200}


def test_labels_for_a_name_that_others_move_are_a_new_version_of_what_it_has_become(
    tiny_bert: Path, adapters: Adapters, here: httpx.Client, there: httpx.Client, tmp_path: Path
) -> None:
    heads = [files_of(make_adapter(tiny_bert, tmp_path / str(i), i, labels=2)) for i in range(2)]
    here.put("/adapters/named", files=heads[0]).raise_for_status()
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(
            lambda: [there.put("/adapters/named", files=heads[i % 2]).status_code for i in range(6)]
        )
        answers = [
            here.put("/adapters/named/labels", json={"labels": ["no", "yes"]}) for _ in range(3)
        ]
        assert set(moving.result()) == {200}
    assert {answer.status_code for answer in answers} <= {200, 503}, [a.text for a in answers]
    last = here.put("/adapters/named/labels", json={"labels": ["no", "yes"]})
    assert last.json()["labels"] == ["no", "yes"]


def test_the_audit_is_read_page_by_page(
    adapters: Adapters, here: httpx.Client, there: httpx.Client
) -> None:
    for i in range(3):
        adapters.put(here, "audited-by-page", i)
    ids: list[str] = []
    before = ""
    for _ in range(3):
        page = there.get("/audit", params={"name": "audited-by-page", "limit": 1, "before": before})
        assert page.status_code == 200, page.text
        ids += [record["id"] for record in page.json()["records"]]
        before = page.json()["next"] or ""
    assert len(set(ids)) == 3
    assert ids == sorted(ids, reverse=True)


def test_a_bucket_that_is_not_there_is_no_empty_one(
    tiny_bert: Path, seaweed: Seaweed, adapters: Adapters, tmp_path: Path
) -> None:
    with patch.dict(os.environ, seaweed.environ):
        server = start(
            tmp_path,
            wait=False,
            model=tiny_bert,
            store="s3://misspelt/x",
            cache_dir=tmp_path / "cache",
        )
        try:
            assert eventually(lambda: "no bucket is at s3://misspelt/x" in told(server.url), 60)
            assert '"not_ready"' in told(server.url)
            assert adapters.put(server.client, "x", 0).status_code == 503
        finally:
            server.kill()


def told(url: str) -> str:
    """What /readyz says."""
    try:
        return httpx.get(f"{url}/readyz").text
    except httpx.TransportError:
        return ""


def test_a_name_that_was_taken_out_of_the_bucket_and_is_deleted_is_served_no_more(
    seaweed: Seaweed, adapters: Adapters, fleet: Fleet, here: httpx.Client
) -> None:
    for i in range(3):
        adapters.put(here, "out", i)
    obstore.delete(seaweed.raw(fleet.prefix), "names/out")
    assert here.delete("/adapters/out").status_code == 404
    assert ask(here, "out").status_code == 404


@pytest.mark.parametrize("odd", [b"1", b"{}", b"[" * 10_000, b"", b'{"moved": 3}'])
def test_what_stands_in_the_log_of_moves_keeps_nobody_from_following(
    seaweed: Seaweed,
    adapters: Adapters,
    fleet: Fleet,
    here: httpx.Client,
    there: httpx.Client,
    odd: bytes,
) -> None:
    adapters.put(here, "followed", 0)
    check(ask(there, "followed"), adapters)
    obstore.put(seaweed.raw(fleet.prefix), "epoch", odd)
    for i in (1, 2):
        put = adapters.put(here, "followed", i)
        assert put.status_code == 200, put.text
        version = put.json()["version"]
        assert eventually(lambda v=version: check(ask(there, "followed"), adapters) == v)


@pytest.mark.parametrize("log", ["of moves", "without"])
def test_a_server_that_cannot_reach_its_bucket_is_not_ready_before_it_has(
    log: str, seaweed: Seaweed, adapters: Adapters, fleet: Fleet
) -> None:
    version = adapters.put(fleet.client(0), "before", 0).json()["version"]
    ends = fleet.servers[1]
    ends.kill()
    if log == "without":  # as a bucket is that was restored
        obstore.delete(seaweed.raw(fleet.prefix), "epoch")
    with fleet.proxies[1].failing(Fault("error", status=503)):
        fleet.servers[1] = again = fleet.start(1, wait=False)
        assert eventually(lambda: status(again.client, "/livez") == 200, 60)
        assert status(again.client, "/readyz") == 503
    assert eventually(lambda: status(again.client, "/readyz") == 200)
    assert eventually(lambda: '"before"' in again.client.get("/v1/models").text)
    assert check(ask(again.client, "before"), adapters) == version


def status(client: httpx.Client, path: str) -> int:
    try:
        return client.get(path).status_code
    except httpx.TransportError:
        return 0


def test_idle_servers_ask_the_bucket_once_a_second_whatever_they_serve(
    adapters: Adapters, fleet: Fleet, there: httpx.Client
) -> None:
    adapters.put(fleet.client(0), "hot", 0)
    check(ask(there, "hot"), adapters)
    time.sleep(1.5)
    before, began = fleet.proxies[1].counts.copy(), time.monotonic()
    for _ in range(200):
        check(ask(there, "hot"), adapters)
    while time.monotonic() < began + 4:
        time.sleep(0.1)
    asked = fleet.proxies[1].counts - before
    assert set(asked) <= {("GET", "epoch")}
    assert 2 <= asked.total() <= 6


def test_a_name_that_is_not_there_is_looked_up_once_for_all_who_ask(
    fleet: Fleet, there: httpx.Client
) -> None:
    before = fleet.proxies[1].counts.copy()

    def status_of(_: int) -> int:
        with httpx.Client(base_url=there.base_url, timeout=30) as client:
            return ask(client, "nobody").status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(status_of, range(8))) == {404}
    asked = fleet.proxies[1].counts - before
    assert (
        1 <= asked["GET", "names"] <= 3
    )  # they may take longer than the half second that it is kept
    looked = asked["GET", "names"]
    time.sleep(1)
    assert ask(there, "nobody").status_code == 404
    assert (fleet.proxies[1].counts - before)["GET", "names"] == looked + 1


@pytest.mark.slow
def test_of_a_large_bucket_names_are_learned_as_they_are_asked_for(
    tiny_bert: Path, seaweed: Seaweed, adapters: Adapters, fleet: Fleet, tmp_path: Path
) -> None:
    version = adapters.put(fleet.client(0), "one-of-many", 0).json()["version"]
    with seaweed.store(fleet.prefix, tmp_path / "cache") as store:

        def point(i: int) -> None:
            after = moved(Pointer(f"n{i:04}"), Entry(version, now()), 64)
            store.move(Pointer(after.name), after)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(point, range(MANY)))
    with running(seaweed, tmp_path, 1, fleet.prefix, model=tiny_bert) as fresh:
        client = fresh.client(0)
        assert client.get("/readyz").json()["adapters"] == 0
        for name in ("n0000", "n1049", "one-of-many"):
            assert check(ask(client, name), adapters) == version
        assert ask(client, "n9999").status_code == 404
        assert client.get("/readyz").json()["adapters"] == 3
        moves = adapters.put(fleet.client(0), "n0000", 1).json()["version"]
        assert eventually(lambda: check(ask(client, "n0000"), adapters) == moves)
        names, url = [], "/adapters?limit=400"
        while url:
            page = client.get(url)
            names += [one["name"] for one in page.json()]
            url = page.links.get("next", {}).get("url", "")
        assert {f"n{i:04}" for i in range(MANY)} <= set(names)
        assert names == sorted(set(names))
        assert client.get("/readyz").json()["adapters"] == 3  # a list is not remembered
        with Client(fresh.servers[0].url) as ours:
            assert [one["name"] for one in ours.list()] == names
        refused = client.post("/rerank", json={"query": "x", "documents": ["y"]})
        assert (refused.status_code, refused.json()["error_type"]) == (400, "no_head")
        few = client.get("/adapters?prefix=n104&limit=1000").json()
        assert {one["name"] for one in few} <= {f"n104{i}" for i in range(10)}
