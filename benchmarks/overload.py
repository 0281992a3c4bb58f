"""What is left of the capacity at five times the load, and whether Retry-After keeps its word.

    python -m benchmarks.overload [--seconds 20] [--inputs 8]

The capacity is what is answered a second at a load slightly above it. The load runs on the same
cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.processes.loaded import bench, last_line, our_server, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--inputs", type=int, default=8)
    parser.add_argument(
        "--guess", type=float, default=200, help="texts a second, a little too many"
    )
    args = parser.parse_args()
    common = ["--inputs", str(args.inputs), "--seconds", str(args.seconds), "--warmup", "8"]
    common += ["--timeout", "600"]
    with tempfile.TemporaryDirectory() as store, our_server(Path(store)) as client:
        rate = args.guess / args.inputs
        found = {"at capacity": said(bench(client, *common, "--rate", str(rate)))}
        time.sleep(8)
        five = 5 * found["at capacity"]["requests_per_s"]
        found["at five times"] = said(bench(client, *common, "--rate", str(five)))
        time.sleep(8)
        retrying = [*common, "--rate", str(five), "--retry", "--seconds", "8", "--warmup", "0"]
        found["retrying"] = said(bench(client, *retrying))
    goodput = found["at five times"]["requests_per_s"] / found["at capacity"]["requests_per_s"]
    retries = found["retrying"]["retries"]
    for name, report in found.items():
        print(
            f"{name:16} {report['requests_per_s']:7.1f} answers/s, p50 {report['latency_ms']['p50']:8.0f}"
            f" ms, p99 {report['latency_ms']['p99']:8.0f} ms, {report['answers']}"
        )
    print(f"goodput at five times: {goodput:.2f}; retries: {retries}")
    ratios = {"goodput at five times / capacity": round(goodput, 3)}
    command = f"python -m benchmarks.overload --inputs {args.inputs} --guess {args.guess:g}"
    kept = {
        name: {k: r[k] for k in ("requests_per_s", "latency_ms", "answers")}
        for name, r in found.items()
    }
    print(last_line(command, ratios=ratios, retries=retries, runs_by_load=kept))


if __name__ == "__main__":
    main()
