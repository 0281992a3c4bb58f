"""Does a row's product depend on the rows beside it, and what does it cost that it does not?

    OMP_NUM_THREADS=1 python -m benchmarks.linear

For the shapes of MiniLM and bert-base: row counts whose rows differ in any bit from the same rows
of a 2,400-row product, for F.linear and for FrozenLinear; and FrozenLinear's time over F.linear's,
the median of 7 rounds. The last line is one JSON.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from app.model.linear import FrozenLinear

SHAPES = [(384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768)]
COUNTS = [1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 100, 200, 256, 300, 512, 1000, 2000]
ROWS = 2400


@torch.inference_mode()
def main() -> None:
    found = []
    for in_, out in SHAPES:
        torch.manual_seed(0)
        weight, bias, x = torch.randn(out, in_), torch.randn(out), torch.randn(ROWS, in_)
        frozen = FrozenLinear(weight, bias)

        def plain(rows: Tensor, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
            return F.linear(rows, weight, bias)

        row = {
            "shape": [in_, out],
            "F.linear differs at": differing(plain, x),
            "FrozenLinear differs at": differing(frozen, x),
            **{f"time ratio at {n}": ratio(frozen, plain, x[:n]) for n in (16, 256, ROWS)},
        }
        print(row, flush=True)
        found.append(row)
    threads, version = torch.get_num_threads(), torch.__version__
    print(json.dumps({"threads": threads, "torch": version, "shapes": found}))


def differing(linear: Callable[[Tensor], Tensor], x: Tensor) -> list[int]:
    whole = linear(x)
    return [n for n in COUNTS if not torch.equal(linear(x[7 : 7 + n]), whole[7 : 7 + n])]


def ratio(one: Callable[[Tensor], Tensor], two: Callable[[Tensor], Tensor], x: Tensor) -> float:
    rounds = []
    for _ in range(7):
        times = []
        for linear in (one, two):
            started = time.perf_counter()
            for _ in range(max(1, 2400 // len(x))):
                linear(x)
            times.append(time.perf_counter() - started)
        rounds.append(times[0] / times[1])
    return round(statistics.median(rounds), 3)


if __name__ == "__main__":
    main()
