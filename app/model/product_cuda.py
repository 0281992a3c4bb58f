"""A Linear's product and every adapter's update of it in one launch, in Triton.

Each program computes a tile of y. While a tile of x is there for x @ W.T, it is multiplied by the
columns of A.T of all segments on these rows as well. Of those sums each row keeps its own
segment's, and they are multiplied by B.T before y is written. Tiles stand where they stand whatever
the segments are, and a row's sums run over k in one order: so a row's bits do not depend on what
stands beside it (docs/decisions/0026). Import it only where Triton is. Knows addresses, rows and
ranks; knows no adapters.
"""

from __future__ import annotations

import triton
import triton.language as tl

from app.model.kernel import FIELDS

BLOCK = 64  # rows of one of Plan.edges; a tile's rows are a multiple
_FIELDS, _BLOCK = tl.constexpr(FIELDS), tl.constexpr(BLOCK)
VARYING = ("T", "offset", "count", "stride")


# As in kernel_cuda.py: no annotations but constexpr, and no variant for what differs from one layer
# or batch to the next.
@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator]
def product(  # type: ignore[no-untyped-def]
    x,
    w,
    weight,
    bias,
    y,
    edges,
    spans,
    table,
    T,
    offset,
    count,
    in_,
    out,
    width,
    stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    BULK: tl.constexpr,
):
    """y = gain * (x @ W.T + bias) + shift + (x @ A.T) @ B.T for ROWS x COLUMNS of y.

    BULK: x and w are descriptors, and each of their tiles comes in one copy. W may be of several
    Linears, each of `width` columns; stride: numbers of the table from one to the next.
    """
    program, across = tl.program_id(0), tl.cdiv(out, COLUMNS)
    row, column = program // across * ROWS, program % across * COLUMNS
    rows = row + tl.arange(0, ROWS)
    n = column + tl.arange(0, COLUMNS)
    first, last = _segments(edges, row // _BLOCK, count, ROWS)
    if not BULK:
        x += tl.minimum(rows, T - 1).to(tl.int64)[:, None] * in_
        w += tl.minimum(n, out - 1)[:, None] * in_
    zeros = tl.zeros((ROWS, COLUMNS), tl.float32)
    if first >= last:
        of = x, w, x, row, column, in_, zeros, zeros
        total, _ = _multiply(*of, INNER, True, False, PRECISION, BULK)
        total += tl.load(bias + n, n < out, 0.0).to(tl.float32)[None, :]
    else:
        table += offset + column // width * stride
        total = _updated(
            x, w, weight, bias, spans, table, first, last, row, column, in_, out, width, zeros,
            ROWS, COLUMNS, INNER, SUMS, PRECISION, BULK,
        )  # fmt: skip
    at = y + rows.to(tl.int64)[:, None] * out + n[None, :]
    tl.store(at, total.to(y.dtype.element_ty), (rows < T)[:, None] & (n < out)[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _segments(edges, block, count, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first segment on ROWS rows from this block on, and past the last."""
    end = tl.minimum(block + ROWS // _BLOCK, count) - 1
    first = tl.load(edges + 2 * block, block < count, 0)
    return first, tl.load(edges + 2 * end + 1, block < count, 0)


@triton.jit  # type: ignore[untyped-decorator]
def _updated(  # type: ignore[no-untyped-def]
    x,
    w,
    weight,
    bias,
    spans,
    table,
    first,
    last,
    row,
    column,
    in_,
    out,
    width,
    total,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    BULK: tl.constexpr,
):
    """A tile with the updates of segments first to last; columns of A.T go along SUMS at a time."""
    dtype: tl.constexpr = weight.dtype.element_ty
    rows = row + tl.arange(0, ROWS)
    zeros = tl.zeros((ROWS, SUMS), tl.float32)
    a, b, start, stop, ends, rescales = _columns(
        weight, spans, table, first, last, 0, in_, width, SUMS
    )
    total, sums = _multiply(
        x, w, a, row, column, in_, total, zeros, INNER, True, True, PRECISION, BULK
    )
    n = column + tl.arange(0, COLUMNS)
    total += tl.load(bias + n, n < out, 0.0).to(tl.float32)[None, :]
    n = tl.multiple_of(column % width, COLUMNS) + tl.arange(0, COLUMNS)
    if rescales != 0:
        total = _rescaled(total, spans, table, first, last, rows, n, width, dtype)
    total = _expanded(total, sums, b, start, stop, rows, n, width, PRECISION)
    for begin in range(SUMS, ends, SUMS):
        a, b, start, stop, _, _ = _columns(
            weight, spans, table, first, last, begin, in_, width, SUMS
        )
        _, sums = _multiply(
            x, w, a, row, column, in_, zeros, zeros, INNER, False, True, PRECISION, BULK
        )
        total = _expanded(total, sums, b, start, stop, rows, n, width, PRECISION)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _columns(  # type: ignore[no-untyped-def]
    weight, spans, table, first, last, begin, in_, width, SUMS: tl.constexpr
):
    """SUMS columns of A.T from `begin` on: where each one's row of A and of B.T is, and the rows of
    its segment, [SUMS, 1] or [SUMS]; how many columns there are, and whether any segment rescales.

    A segment begins at a multiple of 8, or of 16 where its rank is above 8: so that the same of its
    ranks are always multiplied at once, whatever stands before it.
    """
    dtype: tl.constexpr = weight.dtype.element_ty
    BYTES: tl.constexpr = dtype.primitive_bitwidth // 8
    c = begin + tl.arange(0, SUMS)
    a = tl.zeros((SUMS,), tl.int64) + weight.to(tl.int64)  # what no segment has is read and unused
    b = a
    start = tl.zeros((SUMS,), tl.int64)
    stop = start
    ends = tl.full((), 0, tl.int64)
    rescales = ends
    for i in range(first, last):
        entry = table + _FIELDS * i
        rank = tl.load(entry + 2)
        rescales |= tl.load(entry + 3) | tl.load(entry + 4)
        step = tl.where(rank > 8, 16, 8)
        ends = (ends + step - 1) // step * step
        r = c - ends
        mine = (r >= 0) & (r < rank)
        a = tl.where(mine, tl.load(entry) + r * in_ * BYTES, a)
        b = tl.where(mine, tl.load(entry + 1) + r * width * BYTES, b)
        start = tl.where(mine, tl.load(spans + 2 * i), start)
        stop = tl.where(mine, tl.load(spans + 2 * i + 1), stop)
        ends += (rank + step - 1) // step * step
    a = tl.multiple_of(a.to(tl.pointer_type(dtype)), 16)[:, None]
    b = tl.multiple_of(b.to(tl.pointer_type(dtype)), 16)[:, None]
    return a, b, start, stop, ends, rescales


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(  # type: ignore[no-untyped-def]
    x,
    w,
    a,
    row,
    column,
    in_,
    y,
    sums,
    INNER: tl.constexpr,
    BASE: tl.constexpr,
    UPDATES: tl.constexpr,
    PRECISION: tl.constexpr,
    BULK: tl.constexpr,
):
    """y += x @ W.T and sums += x @ A.T over all of k: either, or both in one pass over x."""
    k = tl.arange(0, INNER)[None, :]
    for start in range(0, in_, INNER):
        u = x.load([row, start]) if BULK else tl.load(x + start + k)
        if BASE:
            v = w.load([column, start]) if BULK else tl.load(w + start + k)
            y = tl.dot(u, tl.trans(v), y, input_precision=PRECISION)
        if UPDATES:
            sums = tl.dot(u, tl.trans(tl.load(a + start + k)), sums, input_precision=PRECISION)
    return y, sums


@triton.jit  # type: ignore[untyped-decorator]
def _rescaled(  # type: ignore[no-untyped-def]
    y, spans, table, first, last, rows, n, width, dtype: tl.constexpr
):
    """gain * y + shift on the rows of each segment that has them."""
    pointer: tl.constexpr = tl.pointer_type(dtype)
    for i in range(first, last):
        gain, shift = tl.load(table + _FIELDS * i + 3), tl.load(table + _FIELDS * i + 4)
        own = (rows >= tl.load(spans + 2 * i)) & (rows < tl.load(spans + 2 * i + 1))
        if gain != 0:
            gains = tl.load(tl.multiple_of(gain.to(pointer), 16) + n, n < width, 0.0)
            y = tl.where(own[:, None], y * gains.to(tl.float32)[None, :], y)
        if shift != 0:
            shifts = tl.load(tl.multiple_of(shift.to(pointer), 16) + n, n < width, 0.0)
            y = tl.where(own[:, None], y + shifts.to(tl.float32)[None, :], y)
    return y


@triton.jit  # type: ignore[untyped-decorator]
def _expanded(  # type: ignore[no-untyped-def]
    y, sums, b, start, stop, rows, n, width, PRECISION: tl.constexpr
):
    """y + the sums of each row's own segment @ B.T."""
    own = (rows[:, None] >= start[None, :]) & (rows[:, None] < stop[None, :])
    v = tl.load(b + n[None, :], (start < stop)[:, None] & (n < width)[None, :], 0.0)
    return tl.dot(tl.where(own, sums, 0.0).to(v.dtype), v, y, input_precision=PRECISION)
