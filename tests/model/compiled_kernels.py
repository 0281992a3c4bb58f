"""Compile the GPU's kernels for cards that are not here, as add_updates asks for them; JSON lines
out.

    TRITON_INTERPRET=0 python -m tests.model.compiled_kernels 80 90:served

A process of its own: Triton decides when it is imported whether its kernels are compiled or
interpreted. The driver is a stand-in that only says which card it is; what is launched is compiled
and not run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget

from app.model import fused, kernel_cuda, product_cuda, tiles
from app.model.kernel import FIELDS

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# (in, out) of MiniLM's, bert-base's and bert-large's Linears, and of a base with widths that are no
# multiple of 16, as none that is known has.
BASES = {
    "served": [(h * a, h * b) for h in (384, 768, 1024) for a, b in ((1, 1), (1, 4), (4, 1))],
    "odd": [(200, 168), (168, 200)],
}
RANKS = (1, 8, 16, 64, 256)
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB that one program may have


class Card:
    """What Triton asks of a driver before it launches."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


def forward(dtype: torch.dtype, shapes: list[tuple[int, int]]) -> None:
    """Every launch of one forward: Linears of odd and even number, operands on and off 16 bytes."""
    for segments in (1, 3):
        rows = np.array([(i, i + 1) for i in range(segments)], np.int64)
        table = np.zeros((len(shapes), segments, FIELDS), np.int64)
        table[..., 2] = np.resize(RANKS, table.shape[:2])
        plan = kernel_cuda.plan(rows, table, torch.device("cpu"))
        for number, (in_, out) in enumerate(shapes):
            for off in (0, 1):
                x, y = (torch.zeros(segments * n + off, dtype=dtype) for n in (in_, out))
                kernel_cuda.add_updates(
                    y[off:].view(segments, out), x[off:].view(segments, in_), plan, number
                )


def products(capability: int, dtype: torch.dtype, shapes: list[tuple[int, int]]) -> None:
    """Every product of one forward that is one launch with its updates, in tiles of every form."""
    card = tiles.Card(132, SHARED[capability] << 10, bulk=capability >= 90)
    fused.card_of = lambda _: card  # type: ignore
    rows = np.array([(0, 1), (1, 40)], np.int64)
    table = np.zeros((len(shapes), 2, FIELDS), np.int64)
    table[..., 2] = np.resize(RANKS, table.shape[:2])
    plan = kernel_cuda.plan(rows, table, torch.device("cpu"))
    for number, (in_, out) in enumerate(shapes):
        for members in (1, 3) if in_ == out else (1,):
            linear = fused.Fused(torch.zeros(members * out, in_, dtype=dtype), None, members)
            for tile in linear.tiles:
                for off in (0, 1):
                    x = torch.zeros(40 * in_ + off, dtype=dtype)[off:].view(40, in_)
                    linear.through(tile, x, plan, 0 if members > 1 else number)
                    linear.through(tile, x, None, number)


def variants(capability: int, bases: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What comes of each base's forward in each dtype."""
    compiled: dict[int, Any] = {}
    triton.runtime.driver.set_active(Card(capability))
    for kernel in (kernel_cuda._shrink, kernel_cuda._expand, product_cuda.product):
        only_compile(kernel, compiled)
    for base in bases:
        for dtype in DTYPES:
            compiled.clear()
            forward(dtype, BASES[base])
            if base == "served" and dtype != torch.float16:  # as bfloat16's
                products(capability, dtype, BASES[base])
            for one in compiled.values():
                about = {"card": capability, "base": base, "dtype": str(dtype)}
                yield about | described(one)


def only_compile(kernel: Any, compiled: dict[int, Any]) -> None:
    run = type(kernel).run

    def warm_up(*args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        one = run(kernel, *args, grid=grid, warmup=True, **options)
        compiled[id(one)] = one

    kernel.run = warm_up


def described(compiled: Any) -> dict[str, Any]:
    """What the machine code and its assembly say of themselves. Sizes in bytes."""
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        dump = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        said = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    found = {what: int(re.search(rf"{what}:(\d+)", said)[1]) for what in ("REG", "STACK", "LOCAL")}  # type: ignore[index]
    return {
        "kernel": compiled.metadata.name,
        "shared": compiled.metadata.shared,
        "registers": found["REG"],
        "spilled": found["STACK"] + found["LOCAL"] + len(re.findall(r"[.]local\b", ptx)),
        "tensor_cores": len(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)", ptx)),
        "bulk": ptx.count("cp.async.bulk.tensor"),
        "copies": sorted({int(n, 16) for n in re.findall(r"cp\.async\.c.*?, (0x\w+)", ptx)}),
        "loads": sorted(set(re.findall(r"ld\.global\.?[\w.:]*?((?:v\d\.)?[bus]\d+)", ptx))),
    }


if __name__ == "__main__":
    for card in sys.argv[1:]:  # 80, or 80:served
        capability, _, base = card.partition(":")
        for variant in variants(int(capability), [base] if base else BASES):
            print(json.dumps(variant), flush=True)
