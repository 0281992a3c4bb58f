"""Does it run at all: which paths serve in each dtype, and the card's two ceilings."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from benchmarks.gpu.card import Bench, encoder_of, in_turn, median

DTYPES = ("float32", "bfloat16", "float16")


def measure(bench: Bench) -> None:
    logging.basicConfig(level=logging.WARNING)
    for name in ("minilm", "bert-base"):
        for dtype in DTYPES:
            started = time.perf_counter()
            encoder = encoder_of(bench, name, dtype)
            load_s = round(time.perf_counter() - started, 2)
            bench.add(f"{name}/{dtype}", {"slow_paths": dict(encoder.slow_paths), "load_s": load_s})
            del encoder
    bench.add("ceilings", ceilings(bench))


def ceilings(bench: Bench) -> dict[str, float]:
    """Bytes a second of a copy (read and written), operations a second of a product."""
    side, size = (64, 1 << 20) if bench.small else (8192, 1 << 32)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)

    def product(dtype: torch.dtype, tf32: bool = False) -> Callable[[], object]:
        a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))

        def run() -> None:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            a @ b

        return run

    variants: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(source),
        "float32": product(torch.float32),
        "tf32": product(torch.float32, tf32=True),
        "bfloat16": product(torch.bfloat16),
        "float16": product(torch.float16),
    }
    ms = {name: median(times) for name, times in in_turn(bench, variants, 5).items()}
    rates = {f"{name} TFLOP/s": round(2 * side**3 / ms[name] / 1e9, 1) for name in list(ms)[1:]}
    return {"copy TB/s": round(2 * size / ms["copy"] / 1e9, 3), **rates}
