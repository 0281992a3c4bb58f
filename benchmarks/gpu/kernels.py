"""A Linear's product with its updates in one launch, beside cuBLAS, shrink and expand: tokens ×
adapters × rank.

`us`: shrink and expand alone. `one_us`: the launch that does all; `three_us`: cuBLAS and both;
`base_us`: cuBLAS alone.
`floor`: x read once, y read and written once, A and B of each adapter read once, at the bandwidth of
a large copy. `addmm`: torch's y + (x @ A.T) @ B.T of one adapter over all rows, which knows no
segments. Times are the card's own, between events, with the launches queued ahead.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from app.adapters.values import LoRALayer
from app.model import kernel_cuda
from app.model.fused import Fused
from app.model.kernel import FIELDS, entry_of
from benchmarks.gpu.card import Bench
from benchmarks.gpu.smoke import ceilings

OUT, IN = 768, 768
AHEAD = 20  # launches between two events


def measure(bench: Bench) -> None:
    copy_rate = max(ceilings(bench)["copy TB/s"], 0.001) * 1e12  # a busy CPU's rounds to 0
    tokens = (32, 64) if bench.small else (32, 128, 512, 2048, 4096, 16384)
    segments = (1, 4) if bench.small else (1, 16, 64, 256)
    dtypes = (torch.float32,) if bench.small else (torch.bfloat16, torch.float32)
    for dtype, rank, T, S in itertools.product(dtypes, (8, 64), tokens, segments):
        if S > T or bench.late:
            continue
        key = f"{str(dtype)[6:]}/r {rank}/T {T}/S {S}"
        bench.add(key, one(bench, dtype, rank, T, S, copy_rate))


@torch.inference_mode()
def one(
    bench: Bench, dtype: torch.dtype, rank: int, T: int, S: int, copy_rate: float
) -> dict[str, float]:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=bench.device).to(dtype)

    x, y = draw(T, IN), draw(T, OUT)
    layers = [LoRALayer(draw(rank, IN) / IN**0.5, draw(rank, OUT).T * 0.01) for _ in range(S)]
    layers = [LoRALayer(a.A, a.B.T.contiguous().T) for a in layers]
    ends = [T * (i + 1) // S for i in range(S)]
    rows = np.array(list(zip([0, *ends[:-1]], ends, strict=True)), np.int64)
    table = np.array([[entry_of(layer) for layer in layers]], np.int64).reshape(1, S, FIELDS)
    plan = kernel_cuda.plan(rows, table, bench.device)
    first = layers[0]
    us = clock(bench, lambda: kernel_cuda.add_updates(y, x, plan, 0))
    weight, bias = draw(OUT, IN) / IN**0.5, draw(OUT)
    linear = Fused(weight, bias)

    def three() -> None:
        kernel_cuda.add_updates(F.linear(x, weight, bias), x, plan, 0)

    addmm_us = clock(bench, lambda: y.addmm_(x @ first.A.T, first.B.T))
    size = (T * (IN + 2 * OUT) + S * rank * (IN + OUT)) * dtype.itemsize
    floor_us = 1e6 * size / copy_rate
    return {
        "us": round(us, 2),
        "one_us": round(clock(bench, lambda: linear(x, plan, 0)), 2),
        "three_us": round(clock(bench, three), 2),
        "base_us": round(clock(bench, lambda: F.linear(x, weight, bias)), 2),
        "addmm_us": round(addmm_us, 2),
        "floor_us": round(floor_us, 2),
        "% of bandwidth": round(100 * floor_us / us, 1),
    }


def clock(bench: Bench, run: Callable[[], object]) -> float:
    """Microseconds of one run; on a card between events, the median over rounds of AHEAD runs."""
    run()
    if not bench.on_card:
        started = time.perf_counter()
        run()
        return 1e6 * (time.perf_counter() - started)
    found = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(20_000_000)  # about 10 ms, in which the launches queue up
        start.record()
        for _ in range(AHEAD):
            run()
        end.record()
        end.synchronize()
        found.append(1000 * start.elapsed_time(end) / AHEAD)
    return statistics.median(found)
