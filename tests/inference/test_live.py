"""The last minute, by a clock that the test moves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from app.inference import live as module
from app.inference.live import Live


def forward(**tokens: int) -> Any:
    """A forward pass of so many tokens for each version."""
    batch = [
        SimpleNamespace(ids=[7] * size, version=SimpleNamespace(digest=digest))
        for digest, size in tokens.items()
    ]
    return SimpleNamespace(batch=batch, seconds=0.25)


class Clock:
    now = 1000.5

    def __call__(self) -> float:
        return self.now


def test_a_batch_has_its_tokens_by_the_names_that_were_asked_for() -> None:
    live = Live(Clock())
    live.called("aaaa", "sentiment")
    live.ran(forward(aaaa=3, bbbbbbbbbbbbbbbb=5))
    batch = live.batches()[0]
    assert batch.adapters == {"sentiment": 3, "bbbbbbbbbbbb": 5}
    assert (batch.id, batch.ended, batch.ms) == (1, 1000.5, 250)


def test_the_seconds_are_whole_ones_and_the_current_one_is_not_among_them() -> None:
    clock = Clock()
    live = Live(clock)
    live.ran(forward(a=3))
    assert sum(live.tokens_per_s()) == 0
    clock.now = 1001.5
    live.ran(forward(a=4))
    assert live.tokens_per_s() == [0] * 59 + [3]
    clock.now = 1060.5
    assert live.tokens_per_s() == [3, 4] + [0] * 58
    clock.now = 1062.5
    assert live.tokens_per_s() == [0] * 60


def test_no_more_is_kept_than_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_NAMES", 3)
    clock = Clock()
    live = Live(clock)
    for i in range(200):
        clock.now = 1000 + i
        live.called(f"digest-number-{i}", f"name-{i}")
        live.ran(forward(**{f"digest-number-{i}": 1}))
    batches = live.batches()
    assert [batch.id for batch in batches] == list(range(137, 201))
    assert list(batches[-1].adapters) == ["name-199"]
    assert list(batches[0].adapters) == ["digest-numbe"]
    assert len(live._tokens) <= module.SECONDS + 2


def test_percentiles_are_of_the_last_minute_and_null_of_nothing() -> None:
    clock = Clock()
    live = Live(clock)
    assert live.latency().p50_ms is None
    live.answered(9)
    clock.now += 61
    for i in range(1, 101):
        live.answered(i / 1000)
    latency = live.latency()
    assert (latency.requests, latency.p50_ms, latency.p99_ms) == (100, 50, 99)
    clock.now += 61
    live.answered(0.5)
    assert live.latency() == module.Latency(1, 500, 500)
