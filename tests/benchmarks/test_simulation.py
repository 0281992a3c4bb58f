"""The simulation of many replicas against formulas that are not its own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.catalog.collecting import EVERY_S as COLLECTED_S
from app.catalog.names import TTL_S
from app.catalog.stored_names import WHOLE
from benchmarks.processes.loaded import random_adapter
from benchmarks.simulation.replica import PUTS, Replica, Shared
from benchmarks.simulation.run import Prices, simulate
from benchmarks.simulation.traffic import Case, draw, places, zipf
from tests.catalog.seaweed import BUCKET, Seaweed
from tests.catalog.unreliable import Unreliable
from tests.conftest import Serve
from tests.live import eventually

UP_S = 86_400.0
CASE = Case(
    replicas=4, names=2_000, requests_s=400, moves_min=0, routing="random", seconds=60, up_s=UP_S,
    resident=200, cached=10**6, read_s=0, load_s=0,
)  # fmt: skip


def test_each_replica_asks_for_the_epoch_once_a_second_whatever_the_traffic() -> None:
    for requests_s in (1, 400):
        counts = simulate(replace(CASE, requests_s=requests_s)).counts
        by_collectors = CASE.replicas * CASE.seconds / COLLECTED_S
        assert counts["GET", "epoch"] == 4 * 60 + by_collectors


def test_what_memory_lacks_is_what_ches_approximation_of_a_cache_says() -> None:
    """A name is resident if it was asked for within `t`, the same for all; t so that all fit."""
    result = simulate(CASE)
    rate = CASE.requests_s / CASE.replicas * zipf(CASE.names, 1)
    within = np.geomspace(1e-2, 1e5, 20_000)
    resident = np.array([-np.expm1(-rate * t).sum() for t in within])
    t = within[np.searchsorted(resident, CASE.resident)]
    misses = (rate * np.exp(-rate * t)).sum() / rate.sum()
    assert result.loads / result.requests == pytest.approx(misses, rel=0.03)


def test_a_name_in_use_is_read_again_after_its_ttl_and_then_with_its_next_request() -> None:
    result = simulate(CASE)
    rate = CASE.requests_s / CASE.replicas * zipf(CASE.names, 1)
    again = CASE.replicas * CASE.seconds * (rate / (1 + rate * TTL_S)).sum()
    assert result.counts["GET", "names"] == pytest.approx(again, rel=0.05)


def test_the_last_of_many_replicas_sees_a_move_when_the_latest_poll_of_all_comes() -> None:
    """Each polls at a moment of its own within the second: the last of R is U^(1/R) late."""
    for replicas in (2, 50):
        case = replace(CASE, replicas=replicas, names=WHOLE, requests_s=1, moves_min=2_000)
        late = np.median(simulate(case).late_s)
        assert late == pytest.approx(0.5 ** (1 / (replicas - 1)), rel=0.05)  # all but the writer


def test_a_name_that_nobody_has_asked_for_is_read_once_and_loaded_once() -> None:
    case = replace(CASE, replicas=1, up_s=0, resident=CASE.names, seconds=30)
    traffic = draw(case)
    result = simulate(case, traffic)
    asked = len(np.unique(traffic.name))
    assert result.loads == result.cold == result.counts["GET", "names"] == asked
    assert result.counts["GET", "versions"] == asked
    assert result.counts["GET", "reports"] == 2 * asked  # once for the name, once for the load
    assert result.counts["GET", "files"] == 2 * asked


def test_rendezvous_keeps_a_name_at_two_replicas_and_gives_a_busy_one_more() -> None:
    case = replace(CASE, replicas=30, routing="rendezvous", requests_s=2_000)
    where = places(case, np.random.default_rng(0))
    assert where.count.min() == 2
    assert where.count[0] == np.ceil(2_000 * zipf(case.names, 1)[0] / 50)
    traffic = draw(case)
    for name in (0, 1, 17):
        asked = np.unique(traffic.replica[traffic.name == name])
        assert len(asked) <= traffic.places.count[name]
        assert set(asked) <= set(traffic.places.order[name, : traffic.places.count[name]])


def test_what_was_used_least_recently_falls_out() -> None:
    case, shared = replace(CASE, resident=2, up_s=0), Shared()
    replica = Replica(0, case, shared, np.ones(case.names))
    for at, (name, loads) in enumerate([(7, 1), (8, 2), (7, 2), (9, 3), (7, 3), (8, 4)]):
        replica.ask(at, name)
        assert shared.loads == loads
    assert shared.cold == 3  # the second time from the disk


def test_what_fits_no_replica_at_random_fits_all_of_them_together() -> None:
    apart = replace(CASE, replicas=30, resident=300, seconds=20)
    assert simulate(apart).loads > 100
    assert simulate(replace(apart, routing="rendezvous")).loads == 0


def test_a_put_costs_the_requests_of_its_list_and_each_replica_one_reading_or_two() -> None:
    case = replace(CASE, names=WHOLE, requests_s=0.001, moves_min=60, replicas=3)
    result = simulate(case)
    moves = len(result.late_s)
    assert result.counts["PUT", "names"] == moves * PUTS["PUT", "names"] > 0
    collected = len({name for _, name, _ in draw(case).moves})
    read = result.counts["GET", "names"] - moves * PUTS["GET", "names"]
    assert moves * 3 <= read <= moves * 3 + collected + 5  # each replica, and the collector


def test_dollars_are_counted_by_the_thousand_and_a_delete_is_free() -> None:
    counts = Counter({("GET", "epoch"): 3_000, ("HEAD", "files"): 1_000, ("LIST", "names"): 2_000})
    assert Prices(get=1, put_or_list=10).dollars(counts) == pytest.approx(3 + 1 + 20)


def test_a_put_asks_a_real_bucket_for_what_the_list_says(
    seaweed: Seaweed, serve: Serve, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a name that is known; the server then reads its own move, as the others do."""
    prefix = seaweed.fresh_prefix()
    with Unreliable(seaweed.endpoint, BUCKET, prefix) as proxy:
        for name, value in Seaweed(proxy.endpoint).environ.items():
            monkeypatch.setenv(name, value)
        store = f"s3://{BUCKET}/{prefix}"
        server = serve(store=store, cache_dir=tmp_path / "cache", model=str(tiny_bert))
        for seed in (1, 2):
            before = proxy.counts.copy()
            files = random_adapter(str(tiny_bert), seed)
            server.client.put("/adapters/a", files=files).raise_for_status()
            polled = proxy.counts["GET", "epoch"]
            assert eventually(lambda n=polled: proxy.counts["GET", "epoch"] >= n + 2)
        asked = Counter({kind: n - before[kind] for kind, n in proxy.counts.items()})
    asked["GET", "names"] -= 1
    counted = {kind: n for kind, n in PUTS.items() if kind != ("GET", "epoch")}  # it is polled
    assert {kind: asked[kind] for kind in counted} == counted
    assert asked["PUT", "files"] == len(files)
