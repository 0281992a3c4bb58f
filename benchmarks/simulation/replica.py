"""One replica on a bucket, as app/catalog has it, in what it asks the bucket for.

Each count stands beside the code that it comes from. Requests are counted as a proxy before the
bucket would: by method, and by the folder of the object. Loads take no time here for those who ask
meanwhile: a name that is asked twice while it is loaded counts as one load.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

import numpy as np

from app.catalog.bucket import LISTED
from app.catalog.disk_cache import IN_USE_S
from app.catalog.names import TTL_S
from app.catalog.stored_names import WHOLE
from benchmarks.simulation.traffic import Bools, Case, Floats

UNKNOWN = -1e9  # when a name was read that never was
Kind = tuple[str, str]  # method, folder
PUTS = {  # of a PUT with new bytes: Installer.install, ObjectStore.commit and move, MoveLog._append
    ("GET", "names"): 4,  # install, _point, ObjectNames.move, Names.moved_here
    ("GET", "versions"): 2,  # _is_whole, ObjectVersions.upload
    ("PUT", "reports"): 1,
    ("PUT", "versions"): 1,
    ("PUT", "names"): 1,
    ("GET", "epoch"): 1,
    ("PUT", "epoch"): 1,
    ("PUT", "audit"): 1,
}


@dataclass(eq=False)
class Shared:
    """What all replicas see. revision: of each name that has moved. log: who moved, in order.

    late_s: of each move, until the last replica that knows the name served it, as far as it is
    known. loads: versions that were read into memory, and `cold` those of them from the bucket.
    """

    revision: dict[int, int] = field(default_factory=dict)
    log: list[tuple[float, int, int]] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    counts: Counter[Kind] = field(default_factory=Counter)
    loads: int = 0
    cold: int = 0


class Replica:
    """Names are numbers from 0, and a version is its name's number plus names × revision."""

    def __init__(self, number: int, case: Case, shared: Shared, rates: Floats) -> None:
        """rates [names]: requests a second of each that come to this replica."""
        self._number, self._case, self._shared = number, case, shared
        self._whole = case.names <= WHOLE
        rng = np.random.default_rng((case.seed, number))
        with np.errstate(divide="ignore"):
            asked = rng.exponential(1.0, case.names) / rates  # seconds before the start, at last
        known = asked < case.up_s
        self._read_at = array("d", _read_at(rates, known | self._whole, rng, case.up_s).tobytes())
        self._revision: dict[int, int] = {}
        last = [n for n in np.argsort(asked)[: case.cached].tolist() if known[n]][::-1]
        self._resident = OrderedDict.fromkeys(last[-case.resident :])
        self._cached = OrderedDict((name, -float(asked[name])) for name in last)
        self._polled = self._collected = 0  # entries of the log

    def ask(self, at: float, name: int) -> None:
        """A request: Names.get, then Fetcher.ready."""
        if at - self._read_at[name] > TTL_S:
            self._look(at, name)
        version = self._version(name)
        if version in self._resident:
            self._resident.move_to_end(version)
        else:
            self._load(at, version)

    def poll(self, at: float) -> float:
        """One round of Names.follow, which waits for none of the names that it reads again.

        Returns the seconds it takes.
        """
        counts, case = self._shared.counts, self._case
        counts["GET", "epoch"] += 1
        moves = range(self._polled, len(self._shared.log))
        self._polled = moves.stop
        took: dict[int, float] = {}
        for move in moves:
            moved_at, name, writer = self._shared.log[move]
            if name not in took and (self._whole or self._knows(name)):
                took[name] = self._look(at, name)
            if name in took and writer != self._number:
                late = at + case.read_s + took[name] - moved_at
                self._shared.late_s[move] = max(self._shared.late_s[move], late)
        return case.read_s

    def put(self, at: float, name: int) -> None:
        """A PUT with new bytes; it is known to the log when it is answered."""
        shared = self._shared
        shared.counts.update(PUTS)
        shared.counts["PUT", "files"] += sum(n if n == 1 else n + 2 for n in self._case.files)
        revision = shared.revision.get(name, 0)
        if not self._knows(name) or self._revision.get(name, 0) < revision:
            self._look(at, name)  # Installer._point
        shared.revision[name] = self._revision[name] = revision + 1
        shared.log.append((at, name, self._number))
        shared.late_s.append(0.0)
        self._keep(self._version(name))
        self._put_on_disk(at, self._version(name))

    def collect(self) -> None:
        """One round of catalog/collecting.py. Replica 0 is the one that collects, the others have
        marks that remain (ObjectCollector.collect).
        """
        counts, log = self._shared.counts, self._shared.log
        counts["GET", "epoch"] += 1
        moved = {name for _, name, _ in log[self._collected :]}
        self._collected = len(log)
        if self._number != 0:
            counts["GET", "collector"] += 1
        elif moved:
            counts["GET", "collector"] += 1
            counts["PUT", "collector"] += 1
            counts["LIST", "versions"] += -(-(self._case.names + len(log)) // LISTED)
            counts["LIST", "damaged"] += 1
            counts["LIST", "names"] += -(-self._case.names // LISTED)
            counts["GET", "names"] += len(moved)

    def _knows(self, name: int) -> bool:
        return self._read_at[name] > UNKNOWN

    def _version(self, name: int) -> int:
        return name + self._case.names * self._revision.get(name, 0)

    def _look(self, at: float, name: int) -> float:
        """Names._look and _take. Returns the seconds it takes."""
        counts, case = self._shared.counts, self._case
        known, before = self._knows(name), self._version(name)
        self._read_at[name] = at
        counts["GET", "names"] += 1
        revision = self._shared.revision.get(name, 0)
        if known and revision <= self._revision.get(name, 0):
            return case.read_s
        self._revision[name] = revision
        if self._version(name) not in self._cached:  # ObjectStore.report
            counts["GET", "reports"] += 1
        if not known or before not in self._resident:
            return 2 * case.read_s
        self._load(at, self._version(name))
        return 2 * case.read_s + case.load_s

    def _load(self, at: float, version: int) -> None:
        """Fetcher._load_stored."""
        counts = self._shared.counts
        self._shared.loads += 1
        if version in self._cached:
            self._cached[version] = at
            self._cached.move_to_end(version)
        else:  # ObjectVersions.download, Bucket.download
            self._shared.cold += 1
            counts["GET", "versions"] += 1
            counts["GET", "reports"] += 1
            counts["GET", "files"] += sum(self._case.files)
            self._put_on_disk(at, version)
        self._keep(version)

    def _keep(self, version: int) -> None:
        """Residents.put. An old version stays until it falls out."""
        self._resident[version] = None
        while len(self._resident) > self._case.resident:
            self._resident.popitem(last=False)

    def _put_on_disk(self, at: float, version: int) -> None:
        """DiskCache.put."""
        self._cached[version] = at
        while len(self._cached) > self._case.cached:
            if at - next(iter(self._cached.values())) < IN_USE_S:
                return
            self._cached.popitem(last=False)


def _read_at(rates: Floats, known: Bools, rng: np.random.Generator, up_s: float) -> Floats:
    """When each known name was last read, before the start at 0; twice UNKNOWN for all others.

    Of a name that is asked for at random moments, a reading is followed by TTL_S in which there is
    none, and then by the wait for the next request.
    """
    size = len(rates)
    waiting = rng.random(size) * (1 + rates * TTL_S) > rates * TTL_S
    with np.errstate(divide="ignore"):
        waited = TTL_S + rng.exponential(1.0, size) / rates
    age = np.where(waiting, waited, rng.uniform(0, TTL_S, size))
    return np.where(known, -np.minimum(age, up_s), 2 * UNKNOWN)
