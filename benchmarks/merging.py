"""What merging by traffic gains: simulated over traffic that moves on, and measured on a server.

    python -m benchmarks.merging [--seconds 25]

Simulated: 1,200 s of 5,000 tokens a second over 50 adapters, one of which has 70 % and is another one every
so often; the cost of a token and of a merge are engine/automerge.py's. Measured: answers a second above
capacity, three of four requests through one adapter of rank 8 on every Linear, merge=auto over merge=off.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from app.engine.automerge import COST_TOKENS, SAVED, Credits
from benchmarks.processes.loaded import bench, last_line, our_server, put, random_adapter, said

TOKENS_PER_S, ADAPTERS, SECONDS, DOMINANT = 5000, 50, 1200, 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=25)
    args = parser.parse_args()
    simulated = {}
    for every_s in (2, 10, 60, 300):
        simulated[f"another dominates every {every_s} s"] = simulate(every_s)
    for name, found in simulated.items():
        print(f"{name:34} {found}")
    rates = {"off": 0.0, "auto": 0.0}
    for mode in ("off", "auto", "auto", "off"):
        rates[mode] += measure(mode, args.seconds) / 2
    ratio = round(rates["auto"] / rates["off"], 3)
    print(f"measured: {rates} answers/s, auto / off {ratio}")
    print(
        last_line(
            "python -m benchmarks.merging",
            simulated=simulated,
            ratios={"answers with merge=auto / off": ratio},
        )
    )


def simulate(every_s: int) -> dict[str, float]:
    """Shares of what never merging costs: saved by the credits, and by who knows all in advance."""
    rng = random.Random(0)
    credits, merged = Credits(), set[str]()
    merges, cost, best, never = 0, 0.0, 0.0, 0.0
    for second in range(SECONDS):
        dominant = second // every_s % ADAPTERS
        served = {
            f"a{i}": rng.randrange(2 * int(TOKENS_PER_S * 0.3 / ADAPTERS)) for i in range(ADAPTERS)
        }
        served[f"a{dominant}"] += int(TOKENS_PER_S * DOMINANT)
        for name, tokens in served.items():
            never += tokens * (1 + SAVED)
            cost += tokens * (1 if name in merged else 1 + SAVED)
        best += SAVED * TOKENS_PER_S * DOMINANT - (COST_TOKENS if second % every_s == 0 else 0)
        change = credits.tick(served, merged)
        merged = (merged - set(change.unmerge)) | set(change.merge)
        merges += len(change.merge)
        cost += COST_TOKENS * len(change.merge)
    return {
        "saved": round(1 - cost / never, 4),
        "possible": round(max(0.0, best) / never, 4),
        "merges": merges,
    }


def measure(mode: str, seconds: float) -> float:
    names = ["busy", "busy", "busy", "other"]
    load = [part for name in names for part in ("--adapter", name)]
    load += ["--inputs", "8", "--rate", "40", "--seconds", str(seconds), "--warmup", "15"]
    with tempfile.TemporaryDirectory() as store, our_server(Path(store), "--merge", mode) as client:
        put(client, "busy", random_adapter(None, 1))
        put(client, "other", random_adapter(None, 2))
        return float(said(bench(client, *load, "--timeout", "120"))["requests_per_s"])


if __name__ == "__main__":
    main()
