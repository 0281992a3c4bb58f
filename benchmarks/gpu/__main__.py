"""What a card gives, and whether it gives the right answers: one stage a process, JSON out.

    python -m benchmarks.gpu --out DIR [--stage smoke …] [--device cuda|cpu] [--small] [--seconds N]

Without --stage all of them, one after another, each killed at its own limit. DIR/STAGE.json is
written again with every result, so that what ends a stage costs only what was to come. --small
--device cpu runs everything on a machine without a card, in a minute: it shows that the stages run,
and no figure of it means anything.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

LIMITS_S = {
    "smoke": 120,
    "truth": 300,
    "graphs": 120,
    "kernels": 120,
    "forward": 600,
    "server": 240,
    "memory": 180,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=LIMITS_S, action="append")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, help="of a stage, in place of its limit")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    stages = args.stage or list(LIMITS_S)
    if len(stages) == 1:
        run(stages[0], args)
        return
    failed = [stage for stage in stages if not _in_its_own_process(stage, args)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(stage: str, args: argparse.Namespace) -> None:
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported
    import torch

    from benchmarks.gpu import card, older_torch

    limit_s = args.seconds or LIMITS_S[stage]
    path = args.out / f"{stage}.json"
    bench = card.Bench(
        torch.device(args.device), args.small, path, time.monotonic() + 0.9 * limit_s
    )
    bench.add("versions", card.versions(bench))
    bench.add("older_torch", older_torch.LACKS)
    started = time.perf_counter()
    importlib.import_module(f"benchmarks.gpu.{stage}").measure(bench)
    bench.add("seconds", round(time.perf_counter() - started, 1))


def _in_its_own_process(stage: str, args: argparse.Namespace) -> bool:
    command = [sys.executable, "-m", "benchmarks.gpu", "--stage", stage, "--out", str(args.out)]
    command += ["--device", args.device, *(["--small"] if args.small else [])]
    limit_s = args.seconds or LIMITS_S[stage]
    command += ["--seconds", str(limit_s)]
    try:
        return subprocess.run(command, check=False, timeout=limit_s).returncode == 0
    except subprocess.TimeoutExpired:
        return False


if __name__ == "__main__":
    main()
