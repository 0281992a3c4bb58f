"""The store in a bucket that fails: slow, silent, refusing, cut, corrupt, or doing it unanswered.

What must hold whatever happens: a move that was acknowledged is in its name's history exactly once,
at its revision; one that was told as stale, or refused with StoreUnavailable, is not there; one
that ends with ChangeUnsure may be there or not. What a name points at is there. Every call ends. And once the fault is over all
works again, with the same stores.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from app.catalog.bucket import Conflict
from app.catalog.object_store import ObjectStore
from app.catalog.pointer import Entry, Pointer, deleted, moved, now
from app.catalog.store import (
    ChangeUnsure,
    StaleRevision,
    Store,
    StoreUnavailable,
    VersionDamaged,
    content_version,
)
from tests.catalog.seaweed import BUCKET, Seaweed
from tests.catalog.store_contract import commit, is_there, point
from tests.catalog.unreliable import Fault, Unreliable
from tests.live import eventually

WRITERS = 16
RACE_S = 1.5
GRACE_S = 3.0
BOUND_S = 15.0  # some calls ask three times in a row, each for 3 s
KEEP = 10_000  # all of a history
TWO_FILES = {"adapter_model.safetensors": b"tensors" * 1000, "adapter_config.json": b"{}" * 100}
TWO_FILES_VERSION = "2c99cc3ce0f701777ea9e6b08876828e90852d4e7bfe6e6ad5ab197897614567"


@dataclass(frozen=True)
class Failing:
    """A bucket behind a proxy: stores that go through it, and `straight`, which does not."""

    proxy: Unreliable
    stores: list[Store]
    straight: Store
    fresh: Callable[[bool], contextlib.AbstractContextManager[Store]]  # with an empty cache


@pytest.fixture
def failing(seaweed: Seaweed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Failing]:
    prefix, opened = seaweed.fresh_prefix(), iter(range(100))
    # Everybody collects, and a commit counts as fresh for less than a grace as short as here.
    monkeypatch.setattr("app.catalog.object_collecting.ABSENT_S", 0.0)
    monkeypatch.setattr("app.catalog.object_store.SAFE_S", GRACE_S / 6)
    with Unreliable(seaweed.endpoint, BUCKET, prefix) as proxy, contextlib.ExitStack() as stack:

        def fresh(through: bool) -> contextlib.AbstractContextManager[Store]:
            place = Seaweed(proxy.endpoint) if through else seaweed
            return place.store(prefix, tmp_path / f"cache {next(opened)}")

        stores = [stack.enter_context(fresh(True)) for _ in range(4)]
        yield Failing(proxy, stores, stack.enter_context(fresh(False)), fresh)


@dataclass
class Outcomes:
    """Of moves, by the mark that each leaves in the history. slowest: of all calls, in s."""

    acknowledged: dict[str, int] = field(default_factory=dict)  # mark -> revision
    refused: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    slowest: float = 0.0

    def move(self, store: Store, mark: str, version: str) -> None:
        began = time.monotonic()
        try:
            seen = store.look("x")
            self.unknown.add(mark)
            after = store.move(seen, moved(seen, Entry(version, now(), by=mark), KEEP))
        except ChangeUnsure:
            pass
        except (StaleRevision, StoreUnavailable):
            self.unknown.discard(mark)
            self.refused.add(mark)
        else:
            self.unknown.discard(mark)
            self.acknowledged[mark] = after.revision
        finally:
            self.slowest = max(self.slowest, time.monotonic() - began)


def race(stores: list[Store], version: str, seconds: float = RACE_S) -> Outcomes:
    outcomes, end = Outcomes(), time.monotonic() + seconds

    def write(i: int) -> None:
        n = 0
        while time.monotonic() < end:
            outcomes.move(stores[i % len(stores)], f"{i}-{n}", version)
            n += 1

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(WRITERS)))
    return outcomes


def check(pointer: Pointer, outcomes: Outcomes) -> None:
    marks = [entry.by or "" for entry in pointer.history]
    assert len(marks) == pointer.revision, "a revision without its move, or a move too many"
    assert [mark for mark, n in Counter(marks).items() if n > 1] == []
    for mark, revision in outcomes.acknowledged.items():
        assert marks[revision - 1] == mark, "an acknowledged move was overwritten unseen"
    assert outcomes.refused & set(marks) == set(), "told as refused, and made"
    assert set(marks) <= outcomes.acknowledged.keys() | outcomes.unknown


def wait_for_answers(store: Store) -> None:
    """Who has met silence asks again a little later."""
    end = time.monotonic() + 10
    while ended(store.epoch)[0] != "done" and time.monotonic() < end:
        time.sleep(0.1)


def check_recovered(failing: Failing) -> None:
    """All stores write and read what the others have written, within seconds."""
    for store in failing.stores:
        wait_for_answers(store)
    for i, store in enumerate(failing.stores):
        version = commit(store, b"after %d" % i)
        while True:
            with contextlib.suppress(StaleRevision):
                point(store, "x", version, KEEP)
                break
        for reader in (*failing.stores, failing.straight):
            assert reader.look("x").version == version
            assert is_there(reader, version)


RACES = {
    "no fault": None,
    "slow": Fault("slow", seconds=0.2),
    "slow names": Fault("slow", "PUT", "names/", seconds=0.5),
    "errors": Fault("error", every=3),
    "busy": Fault("error", every=2, status=503),
    "errors of moves": Fault("error", "PUT", "names/", every=2, status=503),
    "lost answers": Fault("lost_answer", "PUT", every=3),
    "lost answers of moves": Fault("lost_answer", "PUT", "names/", every=2, status=503),
    "all answers of moves lost": Fault("lost_answer", "PUT", "names/"),
    "cut connections": Fault("cut_connection", "PUT", every=3),
    "cut answers": Fault("cut_body", "GET", every=3),
    "corrupt": Fault("corrupt", "GET", every=3),
    "corrupt names": Fault("corrupt", "GET", "names/", every=2),
    "wrong ETags": Fault("wrong_etag", every=3),
    "only wrong ETags": Fault("wrong_etag", key="names/"),
    "hung": Fault("hung", every=40),
    "late moves": Fault("late", "PUT", "names/", every=8, seconds=4.0),
}
# Every write is refused, since the state that it names was never there.
NOTHING_ACKNOWLEDGED = {"only wrong ETags"}
BRIEF = {"no fault", "errors", "lost answers of moves", "corrupt"}


@pytest.mark.parametrize(
    "kind", [k if k in BRIEF else pytest.param(k, marks=pytest.mark.slow) for k in RACES]
)
def test_sixteen_writers_lose_no_acknowledged_move(failing: Failing, kind: str) -> None:
    version = commit(failing.straight, b"one")
    fault = RACES[kind]
    with failing.proxy.failing(fault) if fault else contextlib.nullcontext():
        outcomes = race(failing.stores, version)
    if fault is not None and fault.kind == "late":
        time.sleep(fault.seconds)
    check(failing.straight.look("x"), outcomes)
    assert outcomes.acknowledged or kind in NOTHING_ACKNOWLEDGED
    assert outcomes.slowest < BOUND_S
    check_recovered(failing)


@pytest.mark.slow
def test_a_bucket_that_goes_and_comes_back_in_the_middle_of_a_race(failing: Failing) -> None:
    version = commit(failing.straight, b"one")
    with ThreadPoolExecutor(1) as pool:
        racing = pool.submit(race, failing.stores, version, 5.0)
        for _ in range(5):
            time.sleep(0.5)
            with failing.proxy.refusing():
                time.sleep(0.4)
        outcomes = racing.result()
    check(failing.straight.look("x"), outcomes)
    assert outcomes.acknowledged
    check_recovered(failing)


def calls(store: Store, version: str, uncached: str) -> dict[str, Callable[[], object]]:
    """Everything that asks the bucket."""
    seen = store.look("x")
    return {
        "commit": lambda: commit(store, b"new"),
        "commit again": lambda: commit(store, b"one"),
        "folder": lambda: store.folder(uncached),
        "options": lambda: store.options(uncached),
        "write_report": lambda: store.write_report(version, {"rank": 2}),
        "names": store.names,
        "look": lambda: store.look("x"),
        "move": lambda: store.move(seen, deleted(seen)),
        "epoch": store.epoch,
        "moves": lambda: store.moves(""),
        "tombstones": store.tombstones,
        "collect": lambda: store.collect(60),
        "set_aside": lambda: store.set_aside(uncached),
        "append_audit": lambda: store.append_audit({"n": 1}),
        "read_audit": lambda: store.read_audit("", 9, lambda _: True),
    }


def ended(call: Callable[[], object]) -> tuple[str, float]:
    """The exception's name, and the time that it took in s."""
    began = time.monotonic()
    try:
        call()
        outcome = "done"
    except Exception as error:
        outcome = type(error).__name__
    return outcome, time.monotonic() - began


@pytest.mark.parametrize("gone", ["hung", "refused", "error"])
def test_without_a_bucket_every_call_is_refused_in_time(failing: Failing, gone: str) -> None:
    store = failing.stores[0]
    version, uncached = commit(store, b"one"), commit(failing.straight, b"two")
    point(store, "x", version)
    asked = calls(store, version, uncached)
    down = {
        "hung": lambda: failing.proxy.failing(Fault("hung")),
        "refused": failing.proxy.refusing,
        "error": lambda: failing.proxy.failing(Fault("error", status=503)),
    }[gone]
    with down(), ThreadPoolExecutor(len(asked)) as pool:
        results = dict(zip(asked, pool.map(ended, asked.values()), strict=True))
        assert is_there(store, version)  # it is in the cache
        assert store.report(uncached) is None
    assert {name: outcome for name, (outcome, _) in results.items()} == dict.fromkeys(
        asked, "StoreUnavailable"
    )
    late = {name: seconds for name, (_, seconds) in results.items() if seconds > BOUND_S}
    assert late == {}
    assert failing.straight.look("x").version == version
    assert is_there(failing.straight, version)
    check_recovered(failing)


@pytest.mark.slow
@pytest.mark.parametrize(
    "aim", ["GET files/", "HEAD files/", "PUT files/", "PUT versions/", "PUT names/", "PUT epoch"]
)
def test_what_hangs_for_one_kind_of_object_ends_in_time(failing: Failing, aim: str) -> None:
    store = failing.stores[0]
    version, uncached = commit(store, b"one"), commit(failing.straight, b"two")
    point(store, "x", version)
    asked = calls(store, version, uncached)
    with failing.proxy.failing(Fault("hung", *aim.split())), ThreadPoolExecutor(20) as pool:
        results = dict(zip(asked, pool.map(ended, asked.values()), strict=True))
    late = {name: round(s, 1) for name, (_, s) in results.items() if s > BOUND_S}
    assert late == {}
    check_recovered(failing)


COLLECTING = {
    "no fault": None,
    "slow": Fault("slow", seconds=0.1),
    "errors": Fault("error", every=5),
    "lost answers": Fault("lost_answer", "PUT", every=4),
    "lost removals": Fault("lost_answer", "DELETE", every=2),
    "cut answers": Fault("cut_body", "GET", every=5),
    "corrupt": Fault("corrupt", every=5),
    "wrong ETags": Fault("wrong_etag", every=4),
    "late": Fault("late", every=10, seconds=1.0),
}


@pytest.mark.parametrize(
    "kind",
    [k if k == "lost answers" else pytest.param(k, marks=pytest.mark.slow) for k in COLLECTING],
)
def test_no_version_that_a_name_points_at_is_collected(failing: Failing, kind: str) -> None:
    """Writers commit a few versions to and fro, point, and delete; two collect all the time."""
    fault, end = COLLECTING[kind], time.monotonic() + 2.5 * GRACE_S
    names, pointed = [f"n{i}" for i in range(8)], []

    def collect(store: Store) -> None:
        while time.monotonic() < end:
            with contextlib.suppress(StoreUnavailable):
                store.collect(GRACE_S)

    def write(i: int) -> None:
        store, random_ = failing.stores[i % 4], random.Random(i)
        while time.monotonic() < end:
            with contextlib.suppress(StoreUnavailable, StaleRevision):
                version = commit(store, b"%d" % random_.randrange(12))
                time.sleep(random_.uniform(0, GRACE_S / 10))
                pointer = point(store, names[i], version, keep=1)
                pointed.append(version)
                if random_.random() < 0.3:
                    store.move(pointer, deleted(pointer))

    with (
        failing.proxy.failing(fault) if fault else contextlib.nullcontext(),
        ThreadPoolExecutor(WRITERS) as pool,
    ):
        tasks = [pool.submit(write, i) for i in range(8)]
        tasks += [pool.submit(collect, store) for store in failing.stores[:2]]
        for task in tasks:
            task.result()
    assert pointed
    with failing.fresh(False) as fresh:
        for name in fresh.every_name():
            pointer = fresh.look(name)
            assert [v for v in pointer.versions if not is_there(fresh, v)] == []
    check_recovered(failing)


def commit_two_files(store: Store) -> None:
    with store.receiving() as tmp:
        folder = tmp / "adapter"
        folder.mkdir()
        for name, content in TWO_FILES.items():
            (folder / name).write_bytes(content)
        version = content_version(folder, {})
        assert version == TWO_FILES_VERSION
        store.commit(folder, version, {}, {"rank": 1})


def read_two_files(store: Store) -> dict[str, bytes] | None:
    """None: nothing is there, or it cannot be asked."""
    with contextlib.suppress(VersionDamaged, StoreUnavailable):
        folder = store.folder(TWO_FILES_VERSION)
        return {name: (folder / name).read_bytes() for name in TWO_FILES}
    return None


@pytest.mark.parametrize(
    "fault",
    [
        Fault("error", "PUT", "files/"),
        Fault("error", "PUT", "files/", every=2),
        Fault("lost_answer", "PUT", "files/", every=2),
        Fault("error", "PUT", "versions/"),
        Fault("lost_answer", "PUT", "versions/"),
        Fault("cut_connection", "PUT", "versions/"),
        Fault("error", "PUT", "reports/"),
    ],
    ids=lambda fault: f"{fault.kind} {fault.key}{fault.every}",
)
def test_a_commit_that_fails_leaves_all_of_it_or_nothing(failing: Failing, fault: Fault) -> None:
    with failing.proxy.failing(fault):
        outcome, _ = ended(lambda: commit_two_files(failing.stores[0]))
    assert outcome in ("done", "StoreUnavailable")
    for reader in (failing.stores[0], failing.straight):
        assert read_two_files(reader) in ((TWO_FILES,) if outcome == "done" else (TWO_FILES, None))
    commit_two_files(failing.stores[0])
    with failing.fresh(False) as fresh:
        assert read_two_files(fresh) == TWO_FILES


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    "fault", [Fault("corrupt", "GET"), Fault("cut_body", "GET")], ids=lambda fault: fault.kind
)
def test_what_was_cut_or_changed_on_its_way_is_not_served(
    failing: Failing, fault: Fault, every: int
) -> None:
    commit_two_files(failing.straight)
    with failing.fresh(True) as reader:
        with failing.proxy.failing(replace(fault, every=every)):
            for _ in range(5):
                assert read_two_files(reader) in (TWO_FILES, None)
                with contextlib.suppress(VersionDamaged, StoreUnavailable):
                    assert reader.options(TWO_FILES_VERSION) == {}
        assert read_two_files(reader) == TWO_FILES
    assert read_two_files(failing.straight) == TWO_FILES


@pytest.mark.parametrize("status", [503, 404])
def test_a_record_that_the_bucket_did_not_take_is_in_the_audit_once_it_answers(
    failing: Failing, status: int
) -> None:
    store = failing.stores[0]
    store.append_audit({"n": 0})
    with failing.proxy.failing(Fault("error", "PUT", "audit/", status=status)):
        for n in (1, 2):
            with pytest.raises(StoreUnavailable):
                store.append_audit({"n": n})
        store.moves("")  # names are followed all the same
    with contextlib.suppress(StoreUnavailable):  # 1 and 2 are on their way still
        store.append_audit({"n": 3})
    for _ in range(2):
        assert eventually(lambda: (store.moves(""), audited(failing.straight))[1] == [3, 2, 1, 0])


def test_a_cache_that_was_emptied_by_hand_goes_on(failing: Failing) -> None:
    store = failing.stores[0]
    commit_two_files(failing.straight)
    assert isinstance(store, ObjectStore)
    root = store._workspace._tmp.parent
    shutil.rmtree(root)
    root.mkdir()
    assert read_two_files(store) == TWO_FILES
    commit(store, b"x")


@pytest.mark.parametrize("met_itself", [False, True])
def test_a_move_that_may_have_been_made_is_told_as_such(
    failing: Failing, monkeypatch: pytest.MonkeyPatch, met_itself: bool
) -> None:
    """The bucket does it, its answer is lost, and then it cannot be asked: it was made. So it was
    where the write came twice, and the second one is refused."""
    store, version = failing.stores[0], commit(failing.straight, b"x")
    assert isinstance(store, ObjectStore)
    before, names, put = point(store, "x", version), store._names, store._names._bucket.put

    def down(*_: object) -> Any:
        raise StoreUnavailable("down")

    def lost(*args: Any) -> None:
        put(*args)
        monkeypatch.setattr(names, "_read", down)
        if met_itself:
            raise Conflict("names/x")
        down()

    monkeypatch.setattr(names._bucket, "put", lost)
    with pytest.raises(ChangeUnsure):
        store.move(before, moved(before, Entry(version, now()), KEEP))
    assert failing.straight.look("x").revision == before.revision + 1
    with pytest.raises(StoreUnavailable) as refused:  # nothing was asked
        store.move(before, moved(before, Entry(version, now()), KEEP))
    assert not isinstance(refused.value, ChangeUnsure)


def audited(store: Store) -> list[int]:
    return [record["n"] for record in store.read_audit("", 9, lambda _: True)]


def test_downloads_that_hang_stand_for_themselves(failing: Failing) -> None:
    """Each is given up, and meanwhile and afterwards the bucket is asked as ever."""
    store = failing.stores[0]
    commit_two_files(failing.straight)
    point(failing.straight, "x", commit(failing.straight, b"x"))
    with (
        failing.proxy.failing(Fault("hung", "GET", "files/")),
        patch("app.catalog.bucket.READ_S", 0.5),  # what hangs longer silences the others
        ThreadPoolExecutor(1) as pool,
    ):
        hanging = pool.submit(store.folder, TWO_FILES_VERSION)
        while not hanging.done():
            assert store.look("x").revision == 1
            time.sleep(0.05)
        assert isinstance(hanging.exception(), StoreUnavailable)
        assert store.look("x").revision == 1


def test_while_the_audit_hangs_what_has_moved_is_told(failing: Failing) -> None:
    """Neither does the write that hangs stand for the bucket, nor is it waited for."""
    store = failing.stores[0]
    version = commit(store, b"x")
    point(store, "z", version)
    began = store.moves("").epoch
    with failing.proxy.failing(Fault("hung", "PUT", "audit/")), ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(store.append_audit, {"n": 1})
        assert eventually(lambda: failing.proxy.counts["PUT", "audit"] > 0)
        point(failing.straight, "x", version)
        assert store.moves(began).names == {"x"} and not hanging.done()
        assert isinstance(hanging.exception(), StoreUnavailable)
        again = store.moves(began).names
        assert again == {"x"}
        point(failing.straight, "y", version)
        assert store.moves(began).names == {"x", "y"}
        assert isinstance(store, ObjectStore)
        flushing = store._audit._flushing
        assert flushing is not None and not flushing.done()
        with pytest.raises(StoreUnavailable):  # at once: it waits behind the first
            store.append_audit({"n": 2})
        assert not flushing.done()
    assert eventually(lambda: (store.moves(""), audited(failing.straight))[1] == [2, 1])


def test_a_move_that_could_not_be_told_is_told_once_the_bucket_answers(failing: Failing) -> None:
    store, version = failing.stores[0], commit(failing.straight, b"one")
    point(store, "w", version)
    before = failing.straight.moves("").epoch
    with failing.proxy.failing(Fault("error", "PUT", "epoch", status=503)):
        point(store, "x", version)
        point(store, "y", version)
    assert failing.straight.moves(before).names == frozenset()
    store.moves("")
    assert failing.straight.moves(before).names == {"x", "y"}


def test_a_file_that_was_changed_on_its_way_is_asked_for_again(
    failing: Failing, tmp_path: Path
) -> None:
    version = commit(failing.straight, b"one")
    with failing.proxy.failing(Fault("corrupt", "GET", "files/", every=2)):
        for store in failing.stores[:2]:
            assert is_there(store, version)
