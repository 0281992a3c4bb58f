"""LLVM's vectors for the kernels that numba compiles: addresses, loads, and sums of float32.

numba turns plain loops into vector code, but neither keeps a tile of sums in registers over a loop
nor adds up many vectors at once. Knows registers; knows no matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from app.model.compiled import lanes

LANES = lanes()
FLOATS = ir.VectorType(ir.FloatType(), LANES)
INTEGER = ir.IntType(64)
QUAD = 4  # float32 in 128 bits, within which a shuffle costs least
FUSED = ("contract",)  # a product and a sum may be one instruction


def at(builder: Any, address: Any, offset: int, index: Any = None, width: int = 0) -> Any:
    """address + offset + index * width, in bytes."""
    if index is not None:
        address = builder.add(address, builder.mul(index, ir.Constant(INTEGER, width)))
    return builder.add(address, ir.Constant(INTEGER, offset))


def load(builder: Any, address: Any, kind: Any) -> Any:
    """From any address."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def store(builder: Any, address: Any, value: Any) -> None:
    """To any address."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def splat(builder: Any, value: Any, count: int) -> Any:
    """`count` times the same."""
    empty = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    one = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), count), None)
    return builder.shuffle_vector(one, empty, zeros)


def least(builder: Any, first: Any, second: Any) -> Any:
    """The smaller of two whole numbers."""
    return builder.select(builder.icmp_signed("<", first, second), first, second)


def multiply_add(builder: Any, total: Any, first: Any, second: Any) -> Any:
    """total + first * second, rounded once where the processor can."""
    return builder.fadd(total, builder.fmul(first, second, flags=FUSED), flags=FUSED)


def added_up(builder: Any, vectors: Sequence[Any]) -> Any:
    """One vector: the sum over each of LANES vectors' own numbers, all in the same order."""
    rest = list(vectors)
    for unit in (1, 1, *(QUAD for _ in range((LANES // QUAD).bit_length() - 1))):
        rest = [
            builder.fadd(*(builder.shuffle_vector(a, b, mask) for mask in _masks(unit)))
            for a, b in zip(rest[::2], rest[1::2], strict=True)
        ]
    (total,) = rest
    return total


def _masks(unit: int) -> list[Any]:
    """Which numbers of two vectors meet: of each, every second `unit` and its neighbour.

    Within each QUAD for single numbers, between them for whole ones.
    """
    span = QUAD if unit == 1 else LANES
    masks = []
    for odd in (0, 1):
        places = [
            vector * LANES + start + first + i
            for start in range(0, LANES, span)
            for vector in (0, 1)
            for first in range(odd * unit, span, 2 * unit)
            for i in range(unit)
        ]
        masks.append(ir.Constant(ir.VectorType(ir.IntType(32), LANES), places))
    return masks
