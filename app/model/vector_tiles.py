"""Tiles of products whose sums stay in vector registers, for the kernels that numba compiles.

All by address, with strides in bytes. Knows rows and columns; knows neither updates nor attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from app.model.vectors import (
    FLOATS,
    INTEGER,
    LANES,
    added_up,
    at,
    least,
    load,
    multiply_add,
    splat,
    store,
    transposed,
)

FLOAT = ir.FloatType()


def dots(rows: int, columns: int) -> Callable[..., None]:
    """sums[i, j] = x[first + i] · a[top + j], rows by columns, which are LANES together.

    x and a have rows of one stride. Over `vectors` whole vectors of them. What is past `last` or
    `bottom` is that one again.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        _typing: Any,
        _x: Any,
        _first: Any,
        _last: Any,
        _a: Any,
        _top: Any,
        _bottom: Any,
        _stride: Any,
        _vectors: Any,
        _sums: Any,
    ) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            x, first, last, a, top, bottom, stride, vectors, sums = args
            left = _starts(builder, x, first, last, stride, rows)
            right = _starts(builder, a, top, bottom, stride, columns)
            totals = _zeros(builder, rows * columns)
            with cgutils.for_range(builder, vectors) as loop:
                u, v = (
                    [load(builder, at(builder, s, 0, loop.index, 4 * LANES), FLOATS) for s in side]
                    for side in (left, right)
                )
                for n, total in enumerate(totals):
                    _add(builder, total, u[n // columns], v[n % columns])
            store(builder, sums, added_up(builder, [builder.load(total) for total in totals]))

        return types.void(*[types.int64] * 9), generate

    return tile  # type: ignore[no-any-return]


def products(rows: int, vectors: int, *, added: bool) -> Callable[..., None]:
    """out[i] = left[i] @ right, or that much more, for so many rows and vectors of columns.

    Of left the rows from `first` on, of out those from `to` on; past `last` and `end` the row
    `spare` is written. `inner`: how many numbers a row of left has, and rows right.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        _typing: Any,
        _left: Any,
        _first: Any,
        _last: Any,
        _left_stride: Any,
        _inner: Any,
        _right: Any,
        _right_stride: Any,
        _out: Any,
        _to: Any,
        _end: Any,
        _out_stride: Any,
        _spare: Any,
    ) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            left, first, last, left_stride, inner, right, right_stride = args[:7]
            sources = _starts(builder, left, first, last, left_stride, rows)
            places = [
                at(builder, row, 4 * LANES * n)
                for row in _written(builder, args[7:], rows)
                for n in range(vectors)
            ]
            totals = _zeros(builder, rows * vectors)
            if added:
                for place, total in zip(places, totals, strict=True):
                    builder.store(load(builder, place, FLOATS), total)
            with cgutils.for_range(builder, inner) as loop:
                row = builder.add(right, builder.mul(loop.index, right_stride))
                v = [load(builder, at(builder, row, 4 * LANES * n), FLOATS) for n in range(vectors)]
                for i, source in enumerate(sources):
                    one = load(builder, at(builder, source, 0, loop.index, 4), FLOAT)
                    every = splat(builder, one, LANES)
                    for n in range(vectors):
                        _add(builder, totals[i * vectors + n], every, v[n])
            for place, total in zip(places, totals, strict=True):
                store(builder, place, builder.load(total))

        return types.void(*[types.int64] * 12), generate

    return tile  # type: ignore[no-any-return]


@intrinsic  # type: ignore[untyped-decorator]
def turn(
    _typing: Any,
    _rows: Any,
    _first: Any,
    _last: Any,
    _stride: Any,
    _columns: Any,
    _columns_stride: Any,
) -> Any:
    """columns[c, i] = rows[first + i, c], LANES by LANES; past `last` that one again."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        rows, first, last, stride, columns, columns_stride = args
        starts = _starts(builder, rows, first, last, stride, LANES)
        turned = transposed(builder, [load(builder, start, FLOATS) for start in starts])
        for c, column in enumerate(turned):
            place = builder.mul(columns_stride, ir.Constant(INTEGER, c))
            store(builder, builder.add(columns, place), column)

    return types.void(*[types.int64] * 6), generate


def _zeros(builder: Any, count: int) -> list[Any]:
    """Where so many vectors of sums are."""
    zero = ir.Constant(FLOATS, None)
    return [cgutils.alloca_once_value(builder, zero) for _ in range(count)]


def _add(builder: Any, total: Any, first: Any, second: Any) -> None:
    builder.store(multiply_add(builder, builder.load(total), first, second), total)


def _starts(
    builder: Any, address: Any, first: Any, last: Any, stride: Any, count: int
) -> list[Any]:
    """Where `count` rows from the first on begin; past the last one it is that again."""
    numbers = (least(builder, at(builder, first, i), last) for i in range(count))
    return [builder.add(address, builder.mul(number, stride)) for number in numbers]


def _written(builder: Any, args: Any, count: int) -> list[Any]:
    """As _starts; past the last one it is the spare row."""
    address, first, last, stride, spare = args
    return [
        builder.select(builder.icmp_signed("<=", at(builder, first, i), last), row, spare)
        for i, row in enumerate(_starts(builder, address, first, last, stride, count))
    ]
