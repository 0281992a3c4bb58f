"""What one adapter's flood does to another's requests, and a long request to short ones.

    python -m benchmarks.fairness [--seconds 20]

A quiet adapter gets 8 single texts a second, alone and then beside floods of another adapter by
another client: requests of 64 texts, or single texts, at several times the capacity. Ratios are of
its p99.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.processes.loaded import bench, last_line, our_server, said

FLOODS = {"64 texts a request": ("64", "8"), "single texts": ("1", "300")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    seconds = parser.parse_args().seconds
    quiet = ["--adapter", "banking77", "--rate", "8", "--seconds", str(seconds)]
    quiet += ["--header", "Authorization: Bearer quiet"]
    found, floods = {}, {}
    with tempfile.TemporaryDirectory() as store, our_server(Path(store)) as client:
        said(bench(client, *quiet))  # warm
        found["alone"] = said(bench(client, *quiet))["latency_ms"]
        for name, (inputs, rate) in FLOODS.items():
            flood = ["--adapter", "sentiment", "--inputs", inputs, "--rate", rate]
            flood += ["--header", "Authorization: Bearer flood", "--seconds", str(seconds + 8)]
            running = bench(client, *flood, "--timeout", "60")
            time.sleep(6)
            found[name] = said(bench(client, *quiet))["latency_ms"]
            floods[name] = said(running)["answers"]
            time.sleep(8)
    ratios = {f"{n} / alone": round(found[n]["p99"] / found["alone"]["p99"], 2) for n in FLOODS}
    for name, latency in found.items():
        print(f"{name:24} p50 {latency['p50']:8.1f} ms   p99 {latency['p99']:8.1f} ms")
    print(ratios)
    print(
        last_line("python -m benchmarks.fairness", latency_ms=found, floods=floods, ratios=ratios)
    )


if __name__ == "__main__":
    main()
