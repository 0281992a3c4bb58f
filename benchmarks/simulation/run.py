"""All replicas of a case, event by event, and what came of it in figures."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np

from app.catalog.collecting import EVERY_S as COLLECTED_S
from app.catalog.names import EVERY_S as POLLED_S
from benchmarks.simulation.replica import Kind, Replica, Shared
from benchmarks.simulation.traffic import Case, Traffic, draw, zipf

Event = tuple[float, Literal["poll", "collect", "put"], int, int]  # at, what, replica, name
SETTLED_S = 5.0  # moves of the last seconds may not have been seen by all


@dataclass(frozen=True)
class Prices:
    """Dollars for 1,000 requests; the defaults are S3's list prices in us-east-1. A HEAD costs what
    a GET does, and a DELETE nothing.
    """

    get: float = 0.0004
    put_or_list: float = 0.005

    def dollars(self, counts: Counter[Kind]) -> float:
        """For requests by method and folder."""
        each = {
            "GET": self.get,
            "HEAD": self.get,
            "PUT": self.put_or_list,
            "LIST": self.put_or_list,
        }
        return sum(count * each[method] / 1000 for (method, _), count in counts.items())


@dataclass(frozen=True)
class Result:
    """Of the seconds that were counted. counts: requests to the bucket. late_s: of each move, until
    the last replica that knew the name served it. loads: into memory; cold: of those, from the
    bucket.
    """

    requests: int
    counts: Counter[Kind]
    late_s: list[float]
    loads: int
    cold: int


def simulate(case: Case, traffic: Traffic | None = None) -> Result:
    """traffic: of draw(case), where it was drawn already."""
    running = _Running(case, traffic or draw(case))
    running.go_on(case.warmup_s)
    before = running.so_far()
    running.go_on(case.total_s)
    after = running.so_far()
    running.go_on(case.total_s + SETTLED_S)  # so that all see the last moves
    return Result(
        after.requests - before.requests,
        after.counts - before.counts,
        running.shared.late_s[len(before.late_s) : len(after.late_s)],
        after.loads - before.loads,
        after.cold - before.cold,
    )


class _Running:
    def __init__(self, case: Case, traffic: Traffic) -> None:
        self.shared = Shared()
        rate = case.requests_s * zipf(case.names, case.exponent)
        self._replicas = [
            Replica(r, case, self.shared, traffic.places.rates(r, rate))
            for r in range(case.replicas)
        ]
        self._traffic, self._asked = traffic, 0
        self._events: list[Event] = [(at, "put", r, name) for at, name, r in traffic.moves]
        phases = np.random.default_rng(case.seed + 1).random((case.replicas, 2)).tolist()
        for r, (poll, collect) in enumerate(phases):
            self._events.append((poll * POLLED_S, "poll", r, 0))
            self._events.append((collect * COLLECTED_S, "collect", r, 0))
        heapq.heapify(self._events)

    def so_far(self) -> Result:
        shared = self.shared
        return Result(
            self._asked, shared.counts.copy(), list(shared.late_s), shared.loads, shared.cold
        )

    def go_on(self, until: float) -> None:
        traffic, events, replicas = self._traffic, self._events, self._replicas
        now = slice(self._asked, int(np.searchsorted(traffic.at, until)))
        asks = (traffic.at[now], traffic.replica[now], traffic.name[now])
        for at, replica, name in zip(*(column.tolist() for column in asks), strict=True):
            while events[0][0] <= at:
                self._happen(heapq.heappop(events))
            replicas[replica].ask(at, name)
        self._asked = now.stop
        while events[0][0] <= until:
            self._happen(heapq.heappop(events))

    def _happen(self, event: Event) -> None:
        at, what, number, name = event
        replica = self._replicas[number]
        match what:
            case "put":
                replica.put(at, name)
            case "poll":
                again = at + replica.poll(at) + POLLED_S
                heapq.heappush(self._events, (again, "poll", number, 0))
            case "collect":
                replica.collect()
                heapq.heappush(self._events, (at + COLLECTED_S, "collect", number, 0))
            case _:
                assert_never(what)
