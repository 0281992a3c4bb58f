"""Which of two matrices is which: the tutorial writes A and B in either order.

Knows shapes, and no names but the base's paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, assert_never, get_args

from torch import Tensor

from app.adapters.base import Base
from app.adapters.recipe import Recipe
from app.adapters.refusals import AdapterRejected

Letters = Literal["tutorial", "tutorial-swapped"]
Layout = Literal["peft", "tutorial", "tutorial-swapped", "loralib", "minlora", "adapters"]


def letter_order(pairs: Mapping[str, Mapping[str, Tensor]], recipe: Recipe, base: Base) -> Layout:
    """Which of the tutorial's two: the query's, or the one that fits. pairs: path -> A and B.

    Raises AdapterRejected where both fit.
    """
    orders: tuple[Letters, ...] = get_args(Letters)
    for order in orders:
        if order == recipe.layout:
            return order
    shapes = [base.linears.get(base.resolve(path) or "") for path in pairs]
    fits = {
        layout
        for layout in orders
        if all(_fits(p, s, layout) for p, s in zip(pairs.values(), shapes, strict=True))
    }
    square = all(shape is None or shape[0] == shape[1] for shape in shapes)
    if not any(shapes):
        return "tutorial"  # no name is this base's: every one is then listed
    if len(fits) == 1 and not square:
        return fits.pop()
    if not fits:
        return "tutorial"  # every misfit is then listed by name
    raise AdapterRejected(
        "the shapes do not tell the tutorial's two letter orders apart: say ?layout=tutorial "
        "(A [r, out], B [in, r]) or ?layout=tutorial-swapped (A [in, r], B [r, out])"
    )


def _fits(pair: Mapping[str, Tensor], shape: tuple[int, int] | None, layout: Layout) -> bool:
    if shape is None or len(pair) < 2:
        return True
    A, B = canonical(pair["A"], pair["B"], layout)
    if A.dim() != 2 or B.dim() != 2:
        return False
    return (B.shape[0], A.shape[1]) == shape and A.shape[0] == B.shape[1]


def canonical(A: Tensor, B: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r], as PEFT has them.

    tutorial: y += x B A with B [in, r], A [r, out]; tutorial-swapped: y += x A B, A [in, r], B [r,
    out].
    """
    if A.dim() != 2 or B.dim() != 2:
        return A, B
    match layout:
        case "tutorial":
            return B.T, A.T
        case "tutorial-swapped":
            return A.T, B.T
        case "peft" | "loralib" | "minlora" | "adapters":
            return A, B
        case _:
            assert_never(layout)
