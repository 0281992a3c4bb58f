"""Who is asked for what, and which names move: drawn beforehand, so that a real run can be sent the
very same.

Knows replicas by their numbers and names by their ranks; knows nothing of a store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray

Routing = Literal["random", "rendezvous"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
NAMES_AT_ONCE = 10_000  # of which the places are drawn, so that it takes little memory
LOAD_A_REPLICA = 50.0  # requests a second of one name, before it gets another replica


@dataclass(frozen=True)
class Case:
    """replicas, names: how many. requests_s: of all names together, by Zipf's law with `exponent`.

    seconds: that are counted, after `warmup_s` which are not. moves_min: PUTs of a name, any as
    likely as another, with bytes that are new. resident, cached: versions that fit a replica's
    memory and its disk. files: of a version, each with its number of parts. up_s: since when the
    replicas have been up, at this traffic; 0: they have just started. read_s: one small request to
    the bucket. load_s: a version from the bucket, until it can be served.
    """

    replicas: int
    names: int
    requests_s: float
    moves_min: float
    routing: Routing
    seconds: float
    warmup_s: float = 0.0
    exponent: float = 1.0
    resident: int = 2_000
    cached: int = 6_400
    files: tuple[int, ...] = (1, 1)
    up_s: float = 0.0
    read_s: float = 0.03
    load_s: float = 0.2
    seed: int = 0

    @property
    def total_s(self) -> float:
        return self.warmup_s + self.seconds


@dataclass(frozen=True, eq=False)
class Traffic:
    """at: seconds since the start, in order. name, replica: who is asked for what then. moves: (at,
    name, replica that is sent the PUT), in order.
    """

    at: Floats
    name: Ints
    replica: Ints
    moves: list[tuple[float, int, int]]
    places: Places


@dataclass(frozen=True, eq=False)
class Places:
    """order [names, most]: the replicas of each name, the first first. count [names]: how many."""

    order: Ints
    count: Ints

    def rates(self, replica: int, rate: Floats) -> Floats:
        """Requests a second of each name that come to the replica. rate [names]: in all."""
        there = (self.order == replica) & (np.arange(self.order.shape[1]) < self.count[:, None])
        return np.where(there.any(axis=1), rate / self.count, 0.0)


def zipf(names: int, exponent: float) -> Floats:
    """The share of each name, by its rank."""
    weight: Floats = np.arange(1, names + 1, dtype=np.float64) ** -exponent
    share: Floats = weight / weight.sum()
    return share


def places(case: Case, rng: np.random.Generator) -> Places:
    """Random routing: all replicas, of each name. Rendezvous: the replicas with the highest hashes,
    which are drawn here; as many as the name's traffic needs, and two at least.
    """
    match case.routing:
        case "random":
            order = np.broadcast_to(np.arange(case.replicas), (case.names, case.replicas))
            return Places(order, np.full(case.names, case.replicas))
        case "rendezvous":
            load = case.requests_s * zipf(case.names, case.exponent)
            needed = np.maximum(2, np.ceil(load / LOAD_A_REPLICA)).astype(np.int64)
            count = np.minimum(case.replicas, needed)
            most = int(count.max())
            parts = [
                np.argsort(rng.random((min(NAMES_AT_ONCE, case.names - start), case.replicas)))
                for start in range(0, case.names, NAMES_AT_ONCE)
            ]
            return Places(np.concatenate([part[:, :most] for part in parts]), count)
        case _:
            assert_never(case.routing)


def draw(case: Case) -> Traffic:
    """The same for the same case."""
    rng = np.random.default_rng(case.seed)
    count = int(rng.poisson(case.requests_s * case.total_s))
    at = np.sort(rng.uniform(0, case.total_s, count))
    name = rng.choice(case.names, size=count, p=zipf(case.names, case.exponent))
    where = places(case, rng)
    replica = where.order[name, (rng.random(count) * where.count[name]).astype(np.int64)]
    moves = int(rng.poisson(case.moves_min * case.total_s / 60))
    moved_at = np.sort(rng.uniform(0, case.total_s, moves)).tolist()
    which = rng.integers(case.names, size=moves).tolist()
    writer = rng.integers(case.replicas, size=moves).tolist()
    return Traffic(at, name, replica, list(zip(moved_at, which, writer, strict=True)), where)
