"""Two servers, a bucket and a balancer under load: adapters come, move and go, servers are killed
and replaced, the bucket hangs. Every answer is compared with PEFT's: none is wrong, none is lost.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.catalog.seaweed import Seaweed
from tests.catalog.store_contract import point
from tests.catalog.unreliable import Fault, Unreliable
from tests.deploy.balancers import balanced, program
from tests.live import eventually
from tests.oracles import FP32
from tests.scale.fleet import TEXTS, Adapters, Fleet, ask, check, made_adapters, running, version_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program("haproxy") is None, reason="haproxy is not there: .[dev]"),
]
NAMES = [f"n{i}" for i in range(8)]
ASKERS, CONTENTS = 4, 6
HANGS_S = 6.0
FRESH_S = (
    HANGS_S + 9
)  # in which every server has seen a move, also of a bucket that has hung; as a rule 1


@dataclass(eq=False)
class Load:
    """Asks through the balancer and moves names meanwhile; at: when a name got a version, and
    whether that is sure: what is refused or not answered may have been done.
    """

    url: str
    adapters: Adapters
    asked: int = 0
    moves: int = 0
    refused_moves: int = 0
    wrong: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    at: dict[str, list[tuple[float, str, bool]]] = field(default_factory=dict)

    def ask(self, seed: int) -> None:
        rng = random.Random(seed)
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self.over.is_set():
                name, text, began = rng.choice(NAMES), rng.randrange(len(TEXTS)), time.monotonic()
                self.asked += 1
                try:
                    answer = ask(client, name, text)
                    if answer.status_code != 200:
                        raise AssertionError(f"{answer.status_code} {answer.text[:200]}")
                    wanted = self.adapters.by_version[version_in(answer)]
                    np.testing.assert_allclose(answer.json()[0], wanted[text], **FP32)
                    self.refuse_stale(name, version_in(answer), began)
                except (httpx.HTTPError, AssertionError, KeyError) as error:
                    self.wrong.append(f"{name}: {type(error).__name__} {error}")

    def refuse_stale(self, name: str, version: str, began: float) -> None:
        """It may have been the name's at some time since FRESH_S before it was asked for."""
        history = list(self.at[name])
        known = [i for i, (at, _, sure) in enumerate(history) if sure and at < began - FRESH_S]
        since = {v for _, v, _ in history[known[-1] if known else 0 :]}
        assert version in since, "an answer of a version long gone"

    def move(self) -> None:
        rng = random.Random(0)
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self.over.is_set():
                self.move_one(client, rng.choice(NAMES), rng.randrange(CONTENTS))
                self.over.wait(0.3)

    def move_one(self, client: httpx.Client, name: str, content: int) -> None:
        version = self.versions[content]
        self.at[name].append((time.monotonic(), version, False))
        try:
            done = self.adapters.put(client, name, content).is_success
        except httpx.HTTPError:
            done = False
        self.moves += done
        self.refused_moves += not done
        if done:
            self.at[name].append((time.monotonic(), version, True))

    @property
    def versions(self) -> list[str]:
        return list(self.adapters.by_version)


@contextmanager
def under_load(url: str, fleet: Fleet, adapters: Adapters) -> Iterator[Load]:
    load = Load(url, adapters)
    for i in range(CONTENTS):
        adapters.put(fleet.client(0), "content", i)
    for name in NAMES:
        version = adapters.put(fleet.client(0), name, 0).json()["version"]
        load.at[name] = [(time.monotonic(), version, True)]
    works = [threading.Thread(target=load.ask, args=(seed,)) for seed in range(ASKERS)]
    works.append(threading.Thread(target=load.move))
    for work in works:
        work.start()
    try:
        yield load
    finally:
        load.over.set()
        for work in works:
            work.join(120)
    print(f"{load.asked} asked, {load.moves} moves, {load.refused_moves} refused")
    assert not load.wrong, f"{len(load.wrong)} of {load.asked}: {load.wrong[:5]}"
    assert load.asked > 200 and load.moves > 20


@pytest.fixture(scope="module")
def adapters(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    return made_adapters(tiny_bert, tmp_path_factory.mktemp("adapters"), CONTENTS)


def test_no_answer_is_wrong_and_none_is_lost_whatever_ends_hangs_or_is_replaced(
    tiny_bert: Path, seaweed: Seaweed, adapters: Adapters, tmp_path: Path
) -> None:
    with running(seaweed, tmp_path, 2, model=tiny_bert, drain_delay=5) as fleet:
        ports = [int(server.url.rpartition(":")[2]) for server in fleet.servers]
        with balanced("haproxy", tmp_path, ports) as url, under_load(url, fleet, adapters) as load:
            time.sleep(5)
            for proxy in fleet.proxies:  # the bucket hangs for everybody
                threading.Thread(target=hang, args=(proxy, HANGS_S)).start()
            time.sleep(12)
            replace(fleet, 0, ports[0], signal.SIGKILL)
            time.sleep(3)
            for n in range(2):  # a rolling update
                replace(fleet, n, ports[n], signal.SIGTERM)
                time.sleep(6)
            asked, moves = load.asked, load.moves
            time.sleep(5)
            assert load.asked > asked and load.moves > moves
        settle(fleet, adapters)


def hang(proxy: Unreliable, seconds: float) -> None:
    with proxy.failing(Fault("hung")):
        time.sleep(seconds)


def replace(fleet: Fleet, n: int, port: int, how: signal.Signals) -> None:
    ends = fleet.servers[n]
    ends.child.send_signal(how)
    ends.child.wait(60)
    ends.client.close()
    fleet.servers[n] = fleet.start(n, port=port)


def settle(fleet: Fleet, adapters: Adapters) -> None:
    """At rest all servers say the same of every name, and it is right."""
    time.sleep(3)
    for name in NAMES:
        said = {check(ask(server.client, name), adapters) for server in fleet.servers}
        assert len(said) == 1


def test_servers_of_two_versions_of_the_code_share_a_bucket(
    tiny_bert: Path, seaweed: Seaweed, adapters: Adapters, tmp_path: Path
) -> None:
    """A newer one writes pointers that this one does not know: it leaves them as they are."""
    with running(seaweed, tmp_path, 2, model=tiny_bert) as fleet:
        fleet.servers[1].kill()
        fleet.servers[1] = fleet.start(1, module="tests.scale.newer")
        old, new = fleet.client(0), fleet.client(1)
        adapters.put(old, "olds", 0)
        assert check(ask(new, "olds"), adapters)
        put = adapters.put(new, "news", 1).json()
        assert check(ask(new, "news"), adapters) == put["version"]
        refused = ask(old, "news")
        assert (refused.status_code, refused.json()["error_type"]) == (503, "store_unavailable")
        assert adapters.put(old, "news", 2).status_code == 503
        assert check(ask(new, "news"), adapters) == put["version"]
        known = adapters.put(old, "moved", 0).json()
        adapters.put(new, "moved", 3)
        assert eventually(lambda: ask(old, "moved").status_code == 503)
        assert "moved" in old.get("/readyz").json()["broken"]
        with seaweed.store(fleet.prefix, tmp_path / "cache") as store:  # of this version
            point(store, "followed", known["version"])
        assert eventually(lambda: "followed" in listed(old))
        assert check(ask(old, "followed"), adapters) == known["version"]
        again = adapters.put(old, "olds", 2).json()
        at_least = {"X-Min-Revision": str(again["revision"])}
        assert check(ask(new, "olds", **at_least), adapters) == again["version"]
        assert old.get("/readyz").status_code == 200


def listed(client: httpx.Client) -> set[str]:
    return {one["name"] for one in client.get("/adapters").json()}
