"""A base's products: each is one frozen Linear, or several that read the same rows.

Knows weights and segments; knows no names of adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from app.model.delta import Members
from app.model.forward_pass import Pass
from app.model.int8 import Int8Linear, joined_in_int8
from app.model.linear import FrozenLinear
from app.model.lora import LinearWithLoRA

if TYPE_CHECKING:
    from app.model.fused import Fused


class Linears:
    """Frozen Linears that read the same rows, as one product; each row takes its own segment's
    adapter, or none.

    The tutorial's `linear(x) + lora(x)`, with the lora chosen by segment.
    """

    def __init__(self, linears: Sequence[LinearWithLoRA]) -> None:
        """One or several, all with a bias or none. Several share one memory from here on."""
        modules = [one.linear for one in linears]
        self.members = Members(
            tuple(one.path for one in linears),
            np.array([one.number for one in linears]),
            np.cumsum([0, *(module.out_features for module in modules)]),
        )
        self._sizes = [module.out_features for module in modules]
        self.frozen = _product_of(modules)
        self.fused: Fused | None = None  # on a GPU

    def rows(self, running: Pass, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """x [1, T, in] -> [1, T, out], or that of each, where there are several."""
        running.between()
        y = self._products(x, running) if running.own else self._updated(x, running)
        return y if len(self._sizes) == 1 else torch.split(y, self._sizes, -1)

    def _updated(self, x: Tensor, running: Pass) -> Tensor:
        """The base's product over all rows, with all updates."""
        plan = running.updates.plan if running.updates.touch(self.members) else None
        if self.fused is None:
            y = self.frozen(x)
        else:
            number = int(self.members.numbers[0])
            if plan is not None and self.fused.takes(plan, number):
                return self.fused(x[0], plan, number)[None]
            y = self.fused(x[0], None, number)[None]
        running.update(y[0], x[0], self.members)
        return y

    def _products(self, x: Tensor, running: Pass) -> Tensor:
        """Each stretch of rows times its own weights: the base's, merged or replaced ones."""
        stretches: list[tuple[slice, list[FrozenLinear | None]]] = []
        for s in running.segments:
            own = [s.layers.own.get(path) for path in self.members.paths]
            if stretches and stretches[-1][1] == own:
                stretches[-1] = (slice(stretches[-1][0].start, s.rows.stop), own)
            else:
                stretches.append((s.rows, own))
        if self.frozen.packed is None and any(None in own for _, own in stretches):
            return self._products_on_gpu(x, running, stretches)
        parts = [self._stretch(x[:, rows], own) for rows, own in stretches]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        running.update(y[0], x[0], self.members)
        return y

    def _products_on_gpu(
        self, x: Tensor, running: Pass, stretches: list[tuple[slice, list[FrozenLinear | None]]]
    ) -> Tensor:
        """The base's product over the rows up to the last that need any of it, which come first.

        cuBLAS gives a row other bits where the product has other rows: then it is over all rows, as
        it would be without the merged ones beside them.
        """
        last = max(rows.stop for rows, own in stretches if None in own)
        x_base = x if self.fused is None else x[:, :last]
        y = self._updated(x_base, running)
        for rows, own in stretches:
            if rows.stop <= y.shape[1]:
                self._overwrite(y[:, rows], x[:, rows], own)
        whole = [
            self._stretch(x[:, rows], own) for rows, own in stretches if rows.start >= y.shape[1]
        ]
        return torch.cat([y, *whole], 1) if whole else y

    def _stretch(self, x: Tensor, own: list[FrozenLinear | None]) -> Tensor:
        """x [1, n, in] through the base's weights and these in the place of some, or of all."""
        layers = [layer for layer in own if layer is not None]
        if len(layers) < len(own):
            y = self.frozen(x)
            self._overwrite(y, x, own)
            return y
        return layers[0](x) if len(layers) == 1 else torch.cat([layer(x) for layer in layers], -1)

    def _overwrite(self, y: Tensor, x: Tensor, own: list[FrozenLinear | None]) -> None:
        ends = self.members.ends
        for layer, start, stop in zip(own, ends, ends[1:], strict=False):
            if layer is not None:
                y[..., start:stop] = layer(x)


def _product_of(modules: Sequence[nn.Linear | Int8Linear]) -> FrozenLinear | Int8Linear:
    plain = [module for module in modules if isinstance(module, nn.Linear)]
    if plain:
        return FrozenLinear(*_joined(plain))
    return joined_in_int8([module for module in modules if isinstance(module, Int8Linear)])


def _joined(modules: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Their weights one above the other, and their biases; the modules' own become parts of it."""
    if len(modules) == 1:
        return modules[0].weight, modules[0].bias
    joined: list[Tensor] = []
    for name in ("weight", "bias"):
        parts = [getattr(module, name) for module in modules]
        if parts[0] is None:
            return joined[0], None
        whole = torch.cat([part.detach() for part in parts])
        for part, view in zip(parts, torch.split(whole, [len(p) for p in parts]), strict=True):
            part.data = view
        joined.append(whole)
    return joined[0], joined[1]
