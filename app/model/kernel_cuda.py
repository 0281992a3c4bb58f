"""The segmented low-rank product on a GPU, in Triton: two launches a layer, whatever the batch.

The twin of kernel.py; both are compared with delta.add_update. Import it only where Triton is:
torch brings it with CUDA. Sources: Punica (Chen et al. 2023) for shrink and expand by segment,
S-LoRA (Sheng et al. 2023) for ranks that differ. Knows addresses, rows and ranks; knows no
adapters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from app.adapters.values import LoRALayer, tensors_of
from app.model.kernel import FIELDS, TORCH_SERVES, entry_of
from app.model.machine import first_line, to_device
from app.model.product_cuda import BLOCK

ROWS = 32  # of one segment that a program takes; a text has about as many
RANKS = 16  # and no fewer: what tensor cores multiply at once
COLUMNS = 64  # of x in a step of shrink, of y in a program of expand
LOAD_BYTES = 16  # of one instruction at most, where its address is a multiple of that
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the largest value


@dataclass(frozen=True, eq=False)
class Plan:
    """One batch's updates on the device, once for all of its layers.

    tiles [n, 3] int64: a segment, its first row here and past the last of its rows.
    table [the base's Linears, S, FIELDS] int64: see delta.with_updates. blocks: of each Linear, how
    many RANKS wide its widest update is. sums: float32, room for any Linear's x @ A.T, one after
    another. For product_cuda.py: spans [S, 2] int64, the segments' rows; edges [n, 2] int64, of
    each BLOCK rows the first segment on them and past the last; crowd: of each Linear, how many
    columns of A.T two such blocks have on average.
    """

    tiles: Tensor
    table: Tensor
    edges: Tensor
    spans: Tensor
    blocks: tuple[int, ...]
    crowd: tuple[float, ...]
    sums: Tensor


def plan(rows: np.ndarray, table: np.ndarray, device: torch.device) -> Plan:
    """rows [S, 2], table [the base's Linears, S, FIELDS], int64, on the CPU."""
    widest = table[..., 2].max(axis=1, initial=0)
    blocks = tuple(triton.cdiv(int(rank), RANKS) for rank in widest)
    edges = edges_of(rows)
    tiles, entries, bounds, spans = _together([tiles_of(rows), table, edges, rows], device)
    sums = torch.empty(int(rows.max()) * max(blocks) * RANKS, device=tiles.device)
    return Plan(tiles, entries, bounds, spans, blocks, crowd_of(edges, table), sums)


def _together(parts: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """On the device by one copy, each from a multiple of 16 bytes on."""
    sizes = [-(-part.size // 2) * 2 for part in parts]
    flat = np.zeros(sum(sizes), np.int64)
    for part, end, size in zip(parts, np.cumsum(sizes), sizes, strict=True):
        flat[end - size : end - size + part.size] = part.ravel()
    places = torch.split(to_device(torch.from_numpy(flat), device), sizes)
    return [place[: part.size].view(part.shape) for place, part in zip(places, parts, strict=True)]


def tiles_of(rows: np.ndarray) -> np.ndarray:
    """Plan.tiles for the segments' rows [S, 2]."""
    counts = -(-(rows[:, 1] - rows[:, 0]) // ROWS)
    segment = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(len(segment)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([segment, rows[segment, 0] + within * ROWS, rows[segment, 1]], axis=1)


def edges_of(rows: np.ndarray) -> np.ndarray:
    """Plan.edges for the segments' rows [S, 2]."""
    starts = np.arange(0, rows.max(), BLOCK)
    first = np.searchsorted(rows[:, 1], starts, "right")
    return np.stack([first, np.searchsorted(rows[:, 0], starts + BLOCK, "left")], axis=1)


def crowd_of(edges: np.ndarray, table: np.ndarray) -> tuple[float, ...]:
    """Plan.crowd. A segment's columns take a multiple of 8."""
    columns = (-(-table[..., 2] // 8) * 8).cumsum(axis=1)
    ends = np.concatenate([np.zeros((len(table), 1), np.int64), columns], axis=1)
    pairs = np.stack([edges[::2, 0], np.append(edges, edges[-1:], axis=0)[1::2, 1]])
    return tuple((ends[:, pairs[1]] - ends[:, pairs[0]]).mean(axis=1).tolist())


@cache
def precision(device: torch.device) -> str:
    """tf32x3: three products of TF32 parts, on tensor cores, of float32's own accuracy.

    Twice to four times as fast as float32's own units (docs/decisions/0019). Cards before Ampere
    have no TF32.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "ieee"
    return "tf32x3"


def add_updates(y: Tensor, x: Tensor, plan: Plan, number: int) -> None:
    """y[rows] = gain * y[rows] + shift + (x[rows] @ A.T) @ B.T for every segment, in place.

    x [T, in], y [T, out] contiguous, of the adapters' dtype; sums are float32. An adapter's parts
    begin at multiples of LOAD_BYTES (adapter.laid_out). number: which of the base's Linears it is.
    """
    if y.data_ptr() % LOAD_BYTES or not y.is_contiguous():
        moved = y.clone(memory_format=torch.contiguous_format)
        add_updates(moved, x, plan, number)
        y.copy_(moved)
        return
    if x.data_ptr() % LOAD_BYTES:
        x = x.clone()
    in_, out = x.shape[1], y.shape[1]
    tiles, blocks = len(plan.tiles), plan.blocks[number]
    # An offset and not plan.table[number]: that begins 8 bytes off 16 for every other number, which
    # Triton would compile a variant for, inside a request.
    offset = number * plan.table.shape[1] * FIELDS
    sums, more = plan.sums, (ROWS, RANKS, COLUMNS, FIELDS, precision(x.device))
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        if blocks:
            of_shrink = (x, sums, plan.tiles, plan.table, offset, in_, blocks, *more)
            _launch(_shrink, (tiles, blocks, 1), in_, of_shrink)
        of_expand = (y, sums, plan.tiles, plan.table, offset, out, blocks, *more)
        _launch(_expand, (tiles, triton.cdiv(out, COLUMNS), 1), out, of_expand)


_compiled: dict[tuple[Any, ...], Any] = {}  # by what Triton compiles a variant for


def _launch(kernel: Any, grid: tuple[int, int, int], width: int, of: tuple[Any, ...]) -> None:
    """kernel[grid](*of), without Triton's search for the variant each time: it takes longer than
    the kernel itself. All pointers are multiples of LOAD_BYTES."""
    key = (kernel, of[0].dtype, of[0].device, width)
    found = _compiled.get(key)
    if found is None:
        _compiled[key] = kernel[grid](*of)  # None in the interpreter, which compiles nothing
    else:
        found[grid](*of)


# The kernels' arguments have no annotations but constexpr: Triton's compiler looks each up in its
# own language, which its interpreter does not. Triton does not specialise on what differs between
# layers and batches: x, y and sums are always aligned, in and out nearly always multiples of 16, so
# that one variant serves.
VARYING = ("offset", "blocks")


@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator]
def _shrink(  # type: ignore[no-untyped-def]
    x,
    sums,
    tiles,
    table,
    offset,
    in_,
    blocks,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FIELDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sums[row, r] = x[row] · A[r] for one tile's rows and RANKS ranks."""
    tile = tiles + 3 * tl.program_id(0)
    entry = table + offset + FIELDS * tl.load(tile)
    stop = tl.load(tile + 2)
    rank = tl.load(entry + 2)
    rows = (tl.load(tile + 1) + tl.arange(0, ROWS))[:, None]
    ranks = (tl.program_id(1) * RANKS + tl.arange(0, RANKS))[None, :]
    if tl.program_id(1) * RANKS < rank:
        a = tl.multiple_of(tl.load(entry).to(tl.pointer_type(x.dtype.element_ty)), 16)
        total = tl.zeros((ROWS, RANKS), tl.float32)
        for start in range(0, in_, COLUMNS):
            k = start + tl.arange(0, COLUMNS)
            u = tl.load(x + rows * in_ + k[None, :], (rows < stop) & (k[None, :] < in_), 0.0)
            v = tl.load(a + ranks * in_ + k[:, None], (ranks < rank) & (k[:, None] < in_), 0.0)
            total += tl.dot(u, v, input_precision=PRECISION)
        # Past the rank they are zeros, so that _expand reads without a mask: 16 bytes at once.
        tl.store(sums + rows * (blocks * RANKS) + ranks, total, rows < stop)


@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator]
def _expand(  # type: ignore[no-untyped-def]
    y,
    sums,
    tiles,
    table,
    offset,
    out,
    blocks,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FIELDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y[row, n] = gain[n] * y[row, n] + shift[n] + sums[row] · B[n] for one tile and COLUMNS n."""
    tile = tiles + 3 * tl.program_id(0)
    entry = table + offset + FIELDS * tl.load(tile)
    stop = tl.load(tile + 2)
    rank = tl.load(entry + 2)
    rows = (tl.load(tile + 1) + tl.arange(0, ROWS))[:, None]
    n = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    here = (rows < stop) & (n < out)
    pointer: tl.constexpr = tl.pointer_type(y.dtype.element_ty)
    gain, shift = tl.load(entry + 3), tl.load(entry + 4)
    if (rank > 0) | (gain != 0) | (shift != 0):
        total = tl.load(y + rows * out + n, here, 0.0).to(tl.float32)
        if gain != 0:
            gains = tl.multiple_of(gain.to(pointer), 16)
            total *= tl.load(gains + n, n < out, 0.0).to(tl.float32)
        if shift != 0:
            shifts = tl.multiple_of(shift.to(pointer), 16)
            total += tl.load(shifts + n, n < out, 0.0).to(tl.float32)
        b = tl.multiple_of(tl.load(entry + 1).to(pointer), 16)
        for start in range(0, rank, RANKS):
            r = start + tl.arange(0, RANKS)
            at = sums + rows * (blocks * RANKS) + r[None, :]
            u = tl.load(at, rows < stop, 0.0)
            v = tl.load(b + r[:, None] * out + n, (r[:, None] < rank) & (n < out), 0.0)
            total += tl.dot(u.to(v.dtype), v, input_precision=PRECISION)
        tl.store(y + rows * out + n, total.to(y.dtype.element_ty), here)


def why_not(
    device: torch.device, dtype: torch.dtype, shapes: Iterable[tuple[int, int]]
) -> str | None:
    """Why torch has to serve instead, in words; None where the kernels give float64's answers.

    shapes: (out, in) of the base's Linears. Tried once at start: a Triton or a card that does
    otherwise costs speed and not answers, and every variant that will serve is compiled.
    """
    try:
        worst = max(_worst(device, dtype, out, in_) for out, in_ in sorted(set(shapes)))
    except Exception as error:  # whatever a compiler or a driver raises
        return f"Triton does not run here ({first_line(error)}), {TORCH_SERVES}"
    if not worst <= TOLERANCE[dtype]:
        return f"Triton is off by {worst:.1e} here, {TORCH_SERVES}"
    return None


def _worst(device: torch.device, dtype: torch.dtype, out: int, in_: int) -> float:
    """The largest error over ranks that fill a block, ranks that do not, and rank 0.

    Through the second of two Linears, so that the offset of its entries is tried as well.
    """
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng).to(device, dtype)

    base_rows = 3
    rows = np.array([(3, 40), (40, 41), (41, 110), (110, 120)], np.int64)
    x, y = draw(int(rows.max()), in_), draw(int(rows.max()), out)
    layers = [
        LoRALayer(draw(r, in_) / in_**0.5, draw(r, out).T, draw(out), draw(out))
        for r in (8, 1, 40, 0)
    ]
    table = np.zeros((2, len(rows), FIELDS), np.int64)
    table[1] = [entry_of(layer) for layer in layers]
    exact = y.double()
    for (start, stop), layer in zip(rows.tolist(), layers, strict=True):
        A, B, gain, shift = (t.double() for t in tensors_of(layer))
        exact[start:stop] = exact[start:stop] * gain + shift + x[start:stop].double() @ A.T @ B.T
    before = y[:base_rows].clone()
    add_updates(y, x, plan(rows, table, device), 1)
    if not torch.equal(y[:base_rows], before):
        return float("inf")
    off = (y.double() - exact).abs().max() / exact.abs().max()
    return float(torch.nan_to_num(off, nan=float("inf")))
