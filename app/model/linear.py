"""A frozen linear layer, laid out once for the processor's matrix product.

On the CPU the weight is reordered by oneDNN at load. That product's bits do not depend on how many
rows are computed beside a row (docs/decisions/0002), which is why a text's embedding is the same
whatever else is in its batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED_DTYPES = (torch.float32, torch.bfloat16)
PACK_ROWS = 256  # the row count that oneDNN lays the weight out for; others only run slower


class FrozenLinear:
    """y [T, out] = x [T, in] @ weight.T + bias; never written to after it is made."""

    def __init__(self, weight: Tensor, bias: Tensor | None, keep_weight: bool = True) -> None:
        """weight [out, in], bias [out]. keep_weight=False drops the plain copy where it is packed."""
        self.bias = bias
        self.packed = (
            torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACK_ROWS)
            if _packs(weight)
            else None
        )
        self.weight = weight if keep_weight or self.packed is None else None
        self.bytes = weight.numel() * weight.element_size()

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)  # type: ignore[arg-type]
        if x.shape[0] == 1:  # one row alone takes another kernel: run two, so that bits stay
            return self(x.expand(2, -1).contiguous())[:1]
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y

    def intact(self) -> bool:
        """Whether the packed copy still holds the plain weight's very values."""
        if self.packed is None or self.weight is None:
            return True
        return torch.equal(self.packed.to_dense(), self.weight)


def _packs(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype in PACKED_DTYPES
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
