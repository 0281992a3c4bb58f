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
from app.model.compiled import compiled
from app.model.machine import first_line

ROWS = 4  # at a time
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


@compiled(fastmath={"reassoc", "contract", "nsz"})
def _shrink(x: Any, a: Any, first: int, last: int, rank: int, sums: Any) -> None:
    """sums[i, j] = x[first + i] · a[j] for four rows; rows past `last` are the last one again.

    Two ranks at a time: with four the sums alone fill the vector registers of AVX2, and a third of
    the time goes into moving them.
    """
    x0, x1 = x[first], x[min(first + 1, last)]
    x2, x3 = x[min(first + 2, last)], x[min(first + 3, last)]
    for j in range(0, rank, 2):
        a0, a1 = a[j], a[min(j + 1, rank - 1)]
        s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = np.float32(0)
        for k in range(len(x0)):
            u0, u1, u2, u3 = x0[k], x1[k], x2[k], x3[k]
            v0, v1 = a0[k], a1[k]
            s00 += u0 * v0
            s01 += u0 * v1
            s10 += u1 * v0
            s11 += u1 * v1
            s20 += u2 * v0
            s21 += u2 * v1
            s30 += u3 * v0
            s31 += u3 * v1
        sums[0, j], sums[0, j + 1] = s00, s01
        sums[1, j], sums[1, j + 1] = s10, s11
        sums[2, j], sums[2, j + 1] = s20, s21
        sums[3, j], sums[3, j + 1] = s30, s31
    sums[:, rank:] = 0


@compiled(fastmath={"contract", "nsz"})
def expand(
    y: Any, b: Any, first: int, last: int, left: int, rank: int, sums: Any, spare: Any
) -> None:
    """y[first + i] += sums[i] @ b for four rows, in b's columns from `left` on; what would be past
    `last` goes into `spare`."""
    right = left + b.shape[1]
    y0 = y[first, left:right]
    y1 = y[first + 1, left:right] if first + 1 <= last else spare
    y2 = y[first + 2, left:right] if first + 2 <= last else spare
    y3 = y[first + 3, left:right] if first + 3 <= last else spare
    for j in range(0, rank, ROWS):
        b0, b1 = b[j], b[min(j + 1, rank - 1)]
        b2, b3 = b[min(j + 2, rank - 1)], b[min(j + 3, rank - 1)]
        s00, s01, s02, s03 = sums[0, j], sums[0, j + 1], sums[0, j + 2], sums[0, j + 3]
        s10, s11, s12, s13 = sums[1, j], sums[1, j + 1], sums[1, j + 2], sums[1, j + 3]
        s20, s21, s22, s23 = sums[2, j], sums[2, j + 1], sums[2, j + 2], sums[2, j + 3]
        s30, s31, s32, s33 = sums[3, j], sums[3, j + 1], sums[3, j + 2], sums[3, j + 3]
        for n in range(len(y0)):
            v0, v1, v2, v3 = b0[n], b1[n], b2[n], b3[n]
            y0[n] += s00 * v0 + s01 * v1 + s02 * v2 + s03 * v3
            y1[n] += s10 * v0 + s11 * v1 + s12 * v2 + s13 * v3
            y2[n] += s20 * v0 + s21 * v1 + s22 * v2 + s23 * v3
            y3[n] += s30 * v0 + s31 * v1 + s32 * v2 + s33 * v3


@compiled()
def _add_update(
    y: Any, x: Any, rows: Any, entry: Any, left: int, right: int, sums: Any, spare: Any
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
            _shrink(x, a, first, stop - 1, rank, sums)
            expand(y, b, first, stop - 1, left, rank, sums, spare)


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
    sums = np.empty((ROWS, width + ROWS), np.float32)
    for m in range(len(updates)):
        left, right = ends[m], ends[m + 1]
        spare = np.zeros(right - left, np.float32)
        for i in range(len(rows)):
            _add_update(y, x, rows[i], updates[m, i], left, right, sums, spare)


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
        for shape in ((7, 40), (7, 24), (rank, 40), (rank, 24), (24,), (24,))
    )
    exact = y.astype(np.float64)
    exact[1:6] = exact[1:6] * gain + shift + x[1:6].astype(np.float64) @ a.T @ b
    entry = [a.ctypes.data, b.ctypes.data, rank, gain.ctypes.data, shift.ctypes.data]
    try:
        add_updates(y, x, rows, np.array([[entry]], np.int64), np.array([0, 24]))
    except Exception as error:  # whatever numba or LLVM raises
        return f"numba does not run here ({first_line(error)}), {TORCH_SERVES}"
    off = float(abs(y - exact).max() / abs(exact).max())
    return None if off <= TOLERANCE else f"numba is off by {off:.1e} here, {TORCH_SERVES}"
