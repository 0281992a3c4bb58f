"""A start without anything kept and the starts after it, until /readyz answers.

    python -m benchmarks.start [--model FOLDER] [--starts 5]

In turns: a start that has to ask transformers, and one that finds what that has kept. Seconds by
the clock, and of CPU by the whole process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from app.model import kept_files
from benchmarks.processes.loaded import last_line, metric, our_server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--starts", type=int, default=5)
    args = parser.parse_args()
    option = ["--model", args.model] if args.model else []
    first, second = [], []
    for _ in range(args.starts):
        for place in kept_files.places():
            for pattern in ("base-*", "tokenizer-*"):
                for path in place.glob(pattern):
                    path.unlink()
        first.append(_start(option))
        second.append(_start(option))
    for what, starts in (("with transformers", first), ("from what was kept", second)):
        wall, cpu = (statistics.median(start[of] for start in starts) for of in ("wall_s", "cpu_s"))
        print(f"{what}: {wall:.2f} s, {cpu:.2f} s of CPU")
    print(
        last_line(f"python -m benchmarks.start --starts {args.starts}", first=first, second=second)
    )


def _start(option: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with our_server(Path(folder), *option) as client:
            wall_s = time.perf_counter() - began
            cpu_s = metric(client, "process_cpu_seconds_total")
        return {"wall_s": wall_s, "cpu_s": cpu_s}


if __name__ == "__main__":
    main()
