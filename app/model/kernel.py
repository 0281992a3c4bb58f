"""The segmented low-rank product on the CPU, compiled by numba: one call a layer, for any batch.

It goes by four rows at a time. A row's sums run in one order whatever stands beside it, so its bits
do not depend on the batch. Its twin in torch, which it is compared with, is delta.add_update. Why
not MKL: eight columns run there at a third of the processor's speed (docs/decisions/0005). Knows
addresses, rows and ranks; knows no adapters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, float32, int64, types
from numba.core import cgutils
from numba.extending import intrinsic

from app.adapters.values import LoRALayer
from app.model import vector_tiles
from app.model.compiled import compiled
from app.model.machine import first_line
from app.model.vectors import LANES

ROWS = 4  # at a time
RANKS = LANES // ROWS  # so that a tile's sums are as many as a vector holds
WIDE = RANKS * LANES  # columns
TOLERANCE = 1e-5  # of the largest value
TORCH_SERVES = "torch multiplies adapter by adapter"
FIELDS = 5  # addresses of A and B, the rank, addresses of gain and shift (0: none)


def entry_of(update: LoRALayer) -> tuple[int, ...]:
    """One update by address: its FIELDS. The tensors have to live longer than it."""
    gain, shift = update.gain, update.shift
    return (
        update.A.data_ptr(),
        update.B.data_ptr(),
        update.rank,
        0 if gain is None else gain.data_ptr(),
        0 if shift is None else shift.data_ptr(),
    )


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(_typing: Any, _address: Any) -> Any:
    """An address as a pointer, which numba has no function for."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


_dots = vector_tiles.dots(ROWS, RANKS)
_wide, _narrow = (vector_tiles.products(ROWS, n, added=True) for n in (RANKS, 1))


@compiled()
def _shrink(x: Any, a: Any, first: int, last: int, sums: Any, tile: Any) -> None:
    """sums[i, j] = x[first + i] · a[j] for ROWS rows; rows past `last` are the last one again."""
    rank, inputs = a.shape
    vectors, stride = inputs // LANES, a.strides[0]
    xs, matrix, found = x.ctypes.data, a.ctypes.data, tile.ctypes.data
    for j in range(0, rank, RANKS):
        _dots(xs, first, last, matrix, j, rank - 1, stride, vectors, found)
        for n in range(min(RANKS, rank - j)):
            for i in range(ROWS):
                row = x[min(first + i, last)]
                sums[i, j + n] = tile[i, n] + _dot(row, a[j + n], vectors * LANES)


@compiled()
def _dot(row: Any, column: Any, start: int) -> Any:
    """row · column from `start` on: what fills no vector."""
    total = np.float32(0)
    for k in range(start, len(row)):
        total += row[k] * column[k]
    return total


@compiled()
def _expand(y: Any, b: Any, first: int, last: int, left: int, sums: Any, spare: Any) -> None:
    """y[first + i] += sums[i] @ b for ROWS rows, in b's columns from `left` on."""
    rank, n = b.shape
    own = (sums.ctypes.data, 0, ROWS - 1, sums.strides[0], rank)
    ys, bs, b_stride = y.ctypes.data + 4 * left, b.ctypes.data, b.strides[0]
    rows, column = (first, last, y.strides[0], spare.ctypes.data), 0
    while column + WIDE <= n:
        _wide(*own, bs + 4 * column, b_stride, ys + 4 * column, *rows)
        column += WIDE
    while column + LANES <= n:
        _narrow(*own, bs + 4 * column, b_stride, ys + 4 * column, *rows)
        column += LANES
    for k in range(column, n):  # what fills no vector
        for i in range(min(ROWS, last - first + 1)):
            y[first + i, left + k] += _dot(sums[i, :rank], b[:, k], 0)


@compiled()
def _add_update(
    y: Any, x: Any, rows: Any, entry: Any, left: int, right: int, sums: Any, tile: Any, spare: Any
) -> None:
    """One segment's, in y's columns from left to right."""
    start, stop, n, rank = rows[0], rows[1], right - left, entry[2]
    if entry[3]:
        y[start:stop, left:right] *= carray(_pointer(entry[3]), (n,), np.float32)
    if entry[4]:
        y[start:stop, left:right] += carray(_pointer(entry[4]), (n,), np.float32)
    if rank:
        a = carray(_pointer(entry[0]), (rank, x.shape[1]), np.float32)
        b = carray(_pointer(entry[1]), (rank, n), np.float32)
        for first in range(start, stop, ROWS):
            _shrink(x, a, first, stop - 1, sums, tile)
            _expand(y, b, first, stop - 1, left, sums, spare)


@compiled(nogil=True)
def add_updates(y: Any, x: Any, rows: Any, updates: Any, ends: Any) -> None:
    """y[rows] = gain * y[rows] + shift + (x[rows] @ A.T) @ B.T for every segment, in place.

    x [T, in], y [T, out] float32, contiguous. rows [S, 2] int64: first and past the last.
    updates [M, S, FIELDS] int64: A [r, in] and B.T [r, n] float32, contiguous, by address.
    ends [M + 1] int64: the m-th of M Linears has the columns from ends[m] to ends[m + 1] of y.
    """
    width = 0
    for m in range(len(updates)):
        for i in range(len(rows)):
            width = max(width, updates[m, i, 2])
    sums, tile = np.empty((ROWS, width), np.float32), np.empty((ROWS, RANKS), np.float32)
    spare = np.zeros(WIDE, np.float32)
    for m in range(len(updates)):
        left, right = ends[m], ends[m + 1]
        for i in range(len(rows)):
            _add_update(y, x, rows[i], updates[m, i], left, right, sums, tile, spare)


def compile_only() -> None:
    """Compile for NUMBA_CPU_NAME, be it another processor than this one."""
    rows, entries = float32[:, ::1], int64[:, ::1]
    add_updates.compile((rows, rows, entries, int64[:, :, ::1], int64[::1]))


def prepare() -> None:
    """Compile now, or load what an earlier start compiled, rather than at the first request."""
    x, rows = np.zeros((1, 1), np.float32), np.zeros((0, 2), np.int64)
    add_updates(x, x, rows, np.zeros((1, 0, FIELDS), np.int64), np.array([0, 1]))


def why_not() -> str | None:
    """Why torch has to serve instead, in words; None where the kernel runs and is right.

    Tried once at start; blocks while prepare() compiles.
    """
    rng = np.random.default_rng(0)
    rank, rows = 9, np.array([(1, 6)], np.int64)
    x, y, a, b, gain, shift = (
        rng.standard_normal(shape, np.float32)
        for shape in ((7, 40), (7, 88), (rank, 40), (rank, 88), (88,), (88,))
    )
    exact = y.astype(np.float64)
    exact[1:6] = exact[1:6] * gain + shift + x[1:6].astype(np.float64) @ a.T @ b
    entry = [a.ctypes.data, b.ctypes.data, rank, gain.ctypes.data, shift.ctypes.data]
    try:
        add_updates(y, x, rows, np.array([[entry]], np.int64), np.array([0, 88]))
    except Exception as error:  # whatever numba or LLVM raises
        return f"numba does not run here ({first_line(error)}), {TORCH_SERVES}"
    off = float(abs(y - exact).max() / abs(exact).max())
    return None if off <= TOLERANCE else f"numba is off by {off:.1e} here, {TORCH_SERVES}"
