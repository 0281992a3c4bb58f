"""The proxy itself: each fault does what it says, seen by a plain client of the bucket."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.catalog.seaweed import BUCKET, Seaweed
from tests.catalog.unreliable import Fault, Unreliable

BODY = bytes(range(256)) * 64


@pytest.fixture
def prefix(seaweed: Seaweed) -> str:
    return seaweed.fresh_prefix()


@pytest.fixture
def proxy(seaweed: Seaweed, prefix: str) -> Iterator[Unreliable]:
    with Unreliable(seaweed.endpoint, BUCKET, prefix) as proxy:
        yield proxy


@pytest.fixture
def through(proxy: Unreliable, prefix: str) -> S3Store:
    """The bucket as seen through the proxy."""
    return Seaweed(proxy.endpoint).raw(prefix)


@pytest.fixture
def straight(seaweed: Seaweed, prefix: str) -> S3Store:
    return seaweed.raw(prefix)


def get(store: S3Store, key: str) -> bytes:
    return bytes(obstore.get(store, key).bytes())


def fails(call: Callable[[], object]) -> bool:
    try:
        call()
    except (BaseError, OSError):
        return True
    return False


def test_without_a_fault_all_passes_and_is_counted(
    through: S3Store, straight: S3Store, proxy: Unreliable
) -> None:
    first = obstore.put(through, "names/a b+ü.json", BODY, mode="create")
    assert get(straight, "names/a b+ü.json") == BODY
    assert fails(lambda: obstore.put(through, "names/a b+ü.json", b"2", mode="create"))
    obstore.put(through, "names/a b+ü.json", b"2", mode={"e_tag": first["e_tag"] or ""})
    assert fails(
        lambda: obstore.put(through, "names/a b+ü.json", b"3", mode={"e_tag": first["e_tag"] or ""})
    )
    assert obstore.head(through, "names/a b+ü.json")["size"] == 1
    (page,) = obstore.list(through, prefix="names")
    assert [o["path"] for o in page] == ["names/a b+ü.json"]
    obstore.delete(through, ["names/a b+ü.json"])
    assert fails(lambda: get(straight, "names/a b+ü.json"))
    asked = {"PUT": 4, "HEAD": 1, "LIST": 1, "DELETE": 1}
    assert proxy.counts == {(method, "names"): n for method, n in asked.items()}


def test_a_slow_answer_comes(through: S3Store, proxy: Unreliable) -> None:
    with proxy.failing(Fault("slow", seconds=0.3)):
        began = time.monotonic()
        obstore.put(through, "x", BODY)
        assert time.monotonic() - began >= 0.3


def test_a_late_request_is_carried_out_after_its_client_has_gone(
    through: S3Store, straight: S3Store, proxy: Unreliable, prefix: str
) -> None:
    hasty = Seaweed(proxy.endpoint).raw(prefix, "200ms")
    with proxy.failing(Fault("late", seconds=0.6)):
        assert fails(lambda: obstore.put(hasty, "x", BODY))
        assert fails(lambda: get(straight, "x"))
    end = time.monotonic() + 10
    while fails(lambda: get(straight, "x")) and time.monotonic() < end:
        time.sleep(0.05)
    assert get(straight, "x") == BODY


@pytest.mark.parametrize("fault", [Fault("hung"), Fault("error", status=503)])
def test_the_bucket_does_not_hear_of_it(
    fault: Fault, straight: S3Store, proxy: Unreliable, prefix: str
) -> None:
    through = Seaweed(proxy.endpoint).raw(prefix, "1s")
    with proxy.failing(fault):
        assert fails(lambda: obstore.put(through, "x", BODY))
    assert fails(lambda: get(straight, "x"))
    obstore.put(through, "x", BODY)


@pytest.mark.parametrize("fault", [Fault("lost_answer"), Fault("cut_connection")])
def test_the_bucket_has_done_it_and_the_client_does_not_know(
    fault: Fault, through: S3Store, straight: S3Store, proxy: Unreliable
) -> None:
    with proxy.failing(fault):
        assert fails(lambda: obstore.put(through, "x", BODY, mode="create"))
    assert get(straight, "x") == BODY
    assert get(through, "x") == BODY


def test_a_body_is_cut_corrupted_or_has_another_etag(
    through: S3Store, straight: S3Store, proxy: Unreliable
) -> None:
    etag = obstore.put(straight, "x", BODY)["e_tag"]
    with proxy.failing(Fault("cut_body", "GET")):
        assert fails(lambda: get(through, "x"))
    with proxy.failing(Fault("corrupt", "GET")):
        body = get(through, "x")
        assert len(body) == len(BODY)
        assert sum(a != b for a, b in zip(body, BODY, strict=True)) == 1
    with proxy.failing(Fault("wrong_etag")):
        assert obstore.head(through, "x")["e_tag"] != etag
        assert obstore.put(through, "y", BODY)["e_tag"] != etag
    assert obstore.head(through, "x")["e_tag"] == etag


def test_a_fault_is_aimed_at_a_method_a_key_and_each_third(
    through: S3Store, proxy: Unreliable
) -> None:
    with proxy.failing(Fault("error", "PUT", "names/", every=3)):
        refused = [fails(lambda i=i: obstore.put(through, f"names/{i}", b"x")) for i in range(6)]  # type: ignore[misc]
        assert refused == [False, False, True] * 2
        assert not any(fails(lambda: obstore.put(through, "files/a", b"x")) for _ in range(3))
        assert not any(fails(lambda: get(through, "names/0")) for _ in range(3))
    with proxy.failing(Fault("error", "LIST", "names")):
        assert fails(lambda: list(obstore.list(through, prefix="names")))
        assert not fails(lambda: list(obstore.list(through, prefix="files")))


def test_refused_connections_come_back_at_the_same_address(
    through: S3Store, proxy: Unreliable
) -> None:
    obstore.put(through, "x", BODY)
    for _ in range(3):
        with proxy.refusing():
            began = time.monotonic()
            assert fails(lambda: get(through, "x"))
            assert time.monotonic() - began < 2
        assert get(through, "x") == BODY


def test_sixteen_at_once_pass(through: S3Store, straight: S3Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: obstore.put(through, f"n/{i}", BODY), range(160)))
    assert sum(len(page) for page in obstore.list(straight, prefix="n")) == 160
