"""A frozen linear layer, laid out once for the processor's matrix product.

On the CPU the weight is reordered by oneDNN at load. That product's bits do not depend on how many
rows are computed beside a row (docs/decisions/0002), which is why a text's embedding is the same
whatever else is in its batch. Which processors oneDNN serves, and in which dtypes, is tried and not
looked up (docs/decisions/0012).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from app.model.machine import first_line

BITS = "a text's last bits may depend on its batch"
PLAIN = f"torch's own product serves, slower, and {BITS}"
WIDE = "float32 products of the same numbers serve, as fast as DTYPE=float32 and no faster"
PACK_ROWS = 256  # the row count that oneDNN lays the weight out for; others only run slower
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the largest value


@dataclass(frozen=True)
class Product:
    """How this processor multiplies by weights of one dtype.

    dtype: of oneDNN's copy of the weight, and of the product; None: F.linear multiplies. instead:
    why it is not oneDNN in the weight's own dtype, in words; None where it is.
    """

    dtype: torch.dtype | None
    instead: str | None = None


class FrozenLinear:
    """y [..., out] = x [..., in] @ weight.T + bias; never written to after it is made."""

    def __init__(self, weight: Tensor, bias: Tensor | None, keep_weight: bool = True) -> None:
        """weight [out, in], bias [out]. keep_weight=False drops the plain weight once packed."""
        dtype = product(weight.dtype).dtype if weight.device.type == "cpu" else None
        self.bias = bias if dtype is None or bias is None else bias.to(dtype)
        self.packed = None if dtype is None else _packed(weight.detach().to(dtype))
        self.dtype = dtype  # of the packed weight
        self.weight = weight if keep_weight or self.packed is None else None

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in x's dtype."""
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)  # type: ignore[arg-type]
        if (
            x.numel() == x.shape[-1]
        ):  # one row alone takes another kernel: run two, so that bits stay
            return self(x.reshape(1, -1).expand(2, -1).contiguous())[:1].view(*x.shape[:-1], -1)
        if x.dtype == self.dtype:
            return _multiply(x, self.packed, self.bias)
        return _multiply(x.to(self.dtype), self.packed, self.bias).to(x.dtype)

    def intact(self) -> bool:
        """Whether the packed copy still holds the plain weight's very values."""
        if self.packed is None or self.weight is None:
            return True
        return torch.equal(self.packed.to_dense().to(self.weight.dtype), self.weight)


def packed_bytes(weight: Tensor) -> int:
    """What a packed copy of it takes; without one, what the plain weight does."""
    dtype = product(weight.dtype).dtype if weight.device.type == "cpu" else None
    return weight.numel() * (dtype or weight.dtype).itemsize


@cache
def product(dtype: torch.dtype) -> Product:
    """The best way that runs here and is right: tried on a small layer, once a process.

    Half precision that the processor does not multiply is multiplied in float32. That is exact, its
    bits do not depend on the batch either, and from 16 rows on it is 4 to 9 times as fast as what
    F.linear does then (docs/decisions/0012).
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return Product(None, f"torch has no oneDNN here: {PLAIN}")
    if dtype == torch.float16 and _multiplies_float16():
        return Product(None)  # F.linear is oneDNN's there; packed it has been tried nowhere
    whys = []
    for wide in (torch.bfloat16, torch.float32) if dtype == torch.bfloat16 else (torch.float32,):
        result = _try(dtype, wide)
        if isinstance(result, Product):
            return result
        whys.append(result)
    return Product(None, f"oneDNN's product does not run here ({'; '.join(whys)}): {PLAIN}")


def _multiplies_float16() -> bool:
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    except AttributeError:
        return False


@torch.inference_mode()
def _try(dtype: torch.dtype, wide: torch.dtype) -> Product | str:
    """Multiply by weights of `dtype` in `wide`: the product, or what is wrong with it."""
    rng = torch.Generator().manual_seed(0)
    weight, bias, x = (
        torch.randn(*s, generator=rng).to(dtype) for s in ((48, 64), (48,), (33, 64))
    )
    try:
        packed, rows, shift = _packed(weight.to(wide)), x.to(wide), bias.to(wide)
        whole = _multiply(rows, packed, shift)
        parts = [_multiply(rows[:count], packed, shift) for count in (2, 3, 7)]
    except Exception as error:  # whatever oneDNN or a torch without its operators raises
        return first_line(error)
    exact = F.linear(x.double(), weight.double(), bias.double())
    off = float((whole.to(dtype).double() - exact).abs().max() / exact.abs().max())
    if not off <= TOLERANCE[dtype]:
        return f"{_name(wide)} is off by {off:.1e}"
    notes = [] if wide == dtype else [f"it does not multiply {_name(dtype)}: {WIDE}"]
    if not all(torch.equal(part, whole[: len(part)]) for part in parts):
        notes.append(BITS)
    return Product(wide, "; ".join(notes) or None)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _packed(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)
    return packed


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y
