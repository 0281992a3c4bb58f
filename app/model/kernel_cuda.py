"""The segmented low-rank product on a GPU, in Triton: two launches a layer, whatever the batch.

Knows addresses, rows and ranks, as kernel.py does for the CPU; the torch twin that both are held to is
delta.add_update. Import it only where Triton is: torch brings it with CUDA. Sources: Punica (Chen et
al. 2023) for shrink and expand by segment, S-LoRA (Sheng et al. 2023) for ranks that differ.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from app.model.kernel import FIELDS
from app.model.machine import to_device

log = logging.getLogger(__name__)
ROWS = 32  # of one segment that a program takes; a text has about as many
RANKS = 16  # and no fewer: what tensor cores multiply at once
COLUMNS = 64  # of x in a step of shrink, of y in a program of expand
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the largest value


@dataclass(frozen=True, eq=False)
class Plan:
    """One batch's updates on the device, once for all of its layers.

    tiles [n, 3] int64: a segment, its first row here and past the last of its rows.
    table [the base's Linears, S, FIELDS] int64: see delta.with_updates. width: the largest rank.
    """

    tiles: Tensor
    table: Tensor
    width: int


def plan(rows: np.ndarray, table: np.ndarray, device: torch.device) -> Plan:
    """rows [S, 2], table [the base's Linears, S, FIELDS], int64, on the CPU."""
    tiles = [
        (i, first, stop)
        for i, (start, stop) in enumerate(rows.tolist())
        for first in range(start, stop, ROWS)
    ]
    width = int(table[..., 2].max(initial=0))
    return Plan(
        to_device(torch.tensor(tiles, dtype=torch.int64), device),
        to_device(torch.from_numpy(table), device),
        triton.cdiv(width, RANKS) * RANKS,
    )


def add_updates(y: Tensor, x: Tensor, plan: Plan, number: int) -> None:
    """y[rows] = gain * y[rows] + shift + (x[rows] @ A.T) @ B.T for every segment, in place.

    x [T, in], y [T, out] contiguous, of the adapters' dtype; sums are float32. number: which of the
    base's Linears it is.
    """
    (count, in_), out = x.shape, y.shape[1]
    tiles = len(plan.tiles)
    table = plan.table[number]
    sums = torch.empty(count, plan.width, device=x.device, dtype=torch.float32)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        if plan.width:
            grid = (tiles, plan.width // RANKS)
            _shrink[grid](x, sums, plan.tiles, table, in_, plan.width, ROWS, RANKS, COLUMNS, FIELDS)
        grid = (tiles, triton.cdiv(out, COLUMNS))
        _expand[grid](y, sums, plan.tiles, table, out, plan.width, ROWS, RANKS, COLUMNS, FIELDS)


@triton.jit  # type: ignore[untyped-decorator]
def _shrink(
    x: Any,
    sums: Any,
    tiles: Any,
    table: Any,
    in_: Any,
    width: Any,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FIELDS: tl.constexpr,
) -> None:
    """sums[row, r] = x[row] · A[r] for one tile's rows and RANKS ranks."""
    tile = tiles + 3 * tl.program_id(0)
    entry = table + FIELDS * tl.load(tile)
    stop = tl.load(tile + 2)
    rank = tl.load(entry + 2)
    rows = (tl.load(tile + 1) + tl.arange(0, ROWS))[:, None]
    ranks = (tl.program_id(1) * RANKS + tl.arange(0, RANKS))[None, :]
    if tl.program_id(1) * RANKS < rank:
        a = tl.load(entry).to(tl.pointer_type(x.dtype.element_ty))
        found = tl.zeros((ROWS, RANKS), tl.float32)
        for start in range(0, in_, COLUMNS):
            k = start + tl.arange(0, COLUMNS)
            u = tl.load(x + rows * in_ + k[None, :], (rows < stop) & (k[None, :] < in_), 0.0)
            v = tl.load(a + ranks * in_ + k[:, None], (ranks < rank) & (k[:, None] < in_), 0.0)
            found += tl.dot(u, v, input_precision="ieee")
        tl.store(sums + rows * width + ranks, found, (rows < stop) & (ranks < rank))


@triton.jit  # type: ignore[untyped-decorator]
def _expand(
    y: Any,
    sums: Any,
    tiles: Any,
    table: Any,
    out: Any,
    width: Any,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FIELDS: tl.constexpr,
) -> None:
    """y[row, n] = gain[n] * y[row, n] + shift[n] + sums[row] · B[n] for one tile and COLUMNS n."""
    tile = tiles + 3 * tl.program_id(0)
    entry = table + FIELDS * tl.load(tile)
    stop = tl.load(tile + 2)
    rank = tl.load(entry + 2)
    rows = (tl.load(tile + 1) + tl.arange(0, ROWS))[:, None]
    n = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    here = (rows < stop) & (n < out)
    pointer: tl.constexpr = tl.pointer_type(y.dtype.element_ty)
    b, gain, shift = tl.load(entry + 1), tl.load(entry + 3), tl.load(entry + 4)
    found = tl.load(y + rows * out + n, here, 0.0).to(tl.float32)
    if gain != 0:
        found *= tl.load(gain.to(pointer) + n, n < out, 0.0).to(tl.float32)
    if shift != 0:
        found += tl.load(shift.to(pointer) + n, n < out, 0.0).to(tl.float32)
    for start in range(0, rank, RANKS):
        r = start + tl.arange(0, RANKS)
        u = tl.load(sums + rows * width + r[None, :], (rows < stop) & (r[None, :] < rank), 0.0)
        v = tl.load(b.to(pointer) + r[:, None] * out + n, (r[:, None] < rank) & (n < out), 0.0)
        found += tl.dot(u.to(v.dtype), v, input_precision="ieee")
    tl.store(y + rows * out + n, found.to(y.dtype.element_ty), here)


def agrees(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels run here and give what torch gives in float64; a warning where not.

    Asked once at start, so that a Triton or a card that does otherwise costs speed and not answers.
    """
    try:
        worst = _worst(device, dtype)
    except Exception as error:  # whatever a compiler or a driver raises: torch serves instead
        log.warning("Triton does not run here, adapters go through torch: %s", error)
        return False
    if not worst <= TOLERANCE[dtype]:
        log.warning("Triton is off by %.1e here, adapters go through torch", worst)
        return False
    return True


def _worst(device: torch.device, dtype: torch.dtype) -> float:
    """The largest error over ranks that fill a block, that do not, and that are none."""
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng).to(device, dtype)

    in_, out, kept = 200, 168, 3
    rows = np.array([(3, 40), (40, 41), (41, 110), (110, 120)], np.int64)
    x, y = draw(rows.max(), in_), draw(rows.max(), out)
    layers = [(draw(r, in_) / in_**0.5, draw(r, out), draw(out), draw(out)) for r in (8, 1, 40, 0)]
    table = [
        (a.data_ptr(), b.data_ptr(), len(a), g.data_ptr(), s.data_ptr()) for a, b, g, s in layers
    ]
    wanted = y.double()
    for (start, stop), (a, b, g, s) in zip(rows.tolist(), layers, strict=True):
        update = x[start:stop].double() @ a.double().T @ b.double()
        wanted[start:stop] = wanted[start:stop] * g.double() + s.double() + update
    before = y[:kept].clone()
    add_updates(y, x, plan(rows, np.array([table], np.int64), device), 0)
    if not torch.equal(y[:kept], before):
        return float("inf")
    return float((y.double() - wanted).abs().max() / wanted.abs().max())
