"""What many replicas ask of a bucket, how late a move is seen, and what that costs: simulated.

    python -m benchmarks.simulate_scale             # 100 replicas, 100,000 names, 10,000 requests/s
    python -m benchmarks.simulate_scale --check     # two real servers beside the simulation

benchmarks/simulation/replica.py has what app/catalog does, call by call. The check sends two
servers on SeaweedFS the very requests and PUTs that the simulation has, and counts what the bucket
is asked, by a proxy. The last line is one JSON object with the machine.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from app.catalog.stored_names import WHOLE
from benchmarks.processes.loaded import last_line
from benchmarks.simulation import small
from benchmarks.simulation.run import Prices, Result, simulate
from benchmarks.simulation.traffic import Case, Routing, draw

ROUTINGS: tuple[Routing, ...] = ("random", "rendezvous")
UP_S = 86_400.0
SMALL = Case(
    replicas=2, names=50, requests_s=10, moves_min=30, routing="random", seconds=60,
    resident=20, read_s=0.005, load_s=0.05,
)  # fmt: skip
SMALL_CASES = {  # every server knows up to 1,000 names; of more, those that it is asked for
    "50 names": SMALL,
    "1,050 names": replace(SMALL, names=1_050, resident=200, exponent=0.7),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--replicas", type=int, default=100)
    parser.add_argument("--names", type=int, default=100_000)
    parser.add_argument("--requests", type=float, default=10_000, help="a second, of all")
    parser.add_argument("--moves", type=float, nargs="+", default=[1, 60], help="a minute")
    parser.add_argument("--resident", type=int, default=2_000, help="versions, of each replica")
    parser.add_argument("--cached", type=int, default=6_400, help="versions on each one's disk")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--warmup", type=float, default=60)
    parser.add_argument("--read-ms", type=float, default=30, help="one small request to the bucket")
    parser.add_argument("--load-ms", type=float, default=200, help="a version from the bucket")
    parser.add_argument("--get-price", type=float, default=Prices.get, help="$ for 1,000")
    parser.add_argument("--put-price", type=float, default=Prices.put_or_list, help="PUT or LIST")
    args = parser.parse_args()
    if args.check:
        _check()
        return
    case = Case(
        args.replicas, args.names, args.requests, 0, "random", args.seconds, args.warmup,
        resident=args.resident, cached=args.cached, up_s=UP_S, read_s=args.read_ms / 1000,
        load_s=args.load_ms / 1000,
    )  # fmt: skip
    prices = Prices(args.get_price, args.put_price)
    found = {
        f"{routing}, {moves:g} moves/min": _figures(
            simulate(replace(case, routing=routing, moves_min=moves)), case.seconds, prices
        )
        for routing in ROUTINGS
        for moves in args.moves
    }
    _print_columns(found)
    print(last_line("python -m benchmarks.simulate_scale", case=asdict(case), runs_by_case=found))


def _figures(result: Result, seconds: float, prices: Prices) -> dict[str, float]:
    """A second, where nothing else is said."""
    late = result.late_s or [0.0]
    dollars = prices.dollars(result.counts)
    return {
        **{" ".join(kind): count / seconds for kind, count in sorted(result.counts.items())},
        "all requests": sum(result.counts.values()) / seconds,
        "loads into memory": result.loads / seconds,
        "of those from the bucket": result.cold / seconds,
        "late s, p50": float(np.percentile(late, 50)),
        "late s, p99": float(np.percentile(late, 99)),
        "$ per million requests": 1e6 * dollars / result.requests,
        "$ a day": 86_400 * dollars / seconds,
    }


def _print_columns(found: dict[str, dict[str, float]]) -> None:
    rows = list(dict.fromkeys(row for column in found.values() for row in column))
    print(f"{'a second':26}" + "".join(f"{name:>26}" for name in found))
    for row in rows:
        print(f"{row:26}" + "".join(f"{column.get(row, 0):26,.3f}" for column in found.values()))


def _check() -> None:
    found: dict[str, Any] = {}
    for name, case in SMALL_CASES.items():
        traffic, late = draw(case), case.names <= WHOLE
        simulated = _totals(simulate(case, traffic), late=late)
        measured = _totals(small.run(case, traffic), late=late)
        asked, moves = len(traffic.at), len(traffic.moves)
        print(f"{name}, {asked} requests and {moves} PUTs in {case.seconds:g} s")
        print(f"{'':20}{'simulated':>12}{'measured':>12}{'deviation':>12}")
        for row in dict.fromkeys([*simulated, *measured]):
            ours, real = simulated.get(row, 0.0), measured.get(row, 0.0)
            deviation = f"{100 * (ours / real - 1):+.1f} %" if real else "-"
            print(f"{row:20}{ours:12,.2f}{real:12,.2f}{deviation:>12}")
        found[name] = {"simulated": simulated, "measured": measured}
    print(last_line("python -m benchmarks.simulate_scale --check", runs_by_case=found))


def _totals(result: Result, *, late: bool) -> dict[str, float]:
    """late: with how late moves were seen."""
    totals = {
        **{" ".join(kind): float(count) for kind, count in sorted(result.counts.items())},
        "all requests": float(sum(result.counts.values())),
        "loads": float(result.loads),
    }
    if late:
        totals["late s, mean"] = round(float(np.mean(result.late_s)), 3)
        totals["late s, most"] = round(float(np.max(result.late_s)), 3)
    return totals


if __name__ == "__main__":
    main()
