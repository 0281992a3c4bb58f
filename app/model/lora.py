"""LoRA around every layer of a frozen encoder: insert, run by segment, merge, unmerge.

Knows modules and segments; knows no names of adapters. The base's weights are only ever read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.adapters.values import Adapter, Rows
from app.model import placeholders
from app.model.batch import Inputs, Segment
from app.model.delta import NO_UPDATES, Layers, Members, Updates, add_delta, gather, with_updates
from app.model.int8 import Int8Embedding, Int8Linear, joined_in_int8
from app.model.linear import FrozenLinear, packed_bytes


def _go_on() -> None:
    """Nothing to do between two layers."""


@dataclass(eq=False)
class Pass:
    """One forward: what it reads, and who sits on which rows.

    between: called before every product, and may raise. norms, embeddings: the segments that bring
    their own; own: whether any has Linears of its own. So a layer that nobody changes does not go
    through hundreds of segments. update_s: seconds of its updates so far.
    """

    inputs: Inputs
    segments: Sequence[Segment] = ()
    updates: Updates = NO_UPDATES
    between: Callable[[], None] = _go_on
    norms: Sequence[Segment] = ()
    embeddings: Sequence[Segment] = ()
    own: bool = False
    update_s: float = 0.0

    def update(self, y: Tensor, x: Tensor, members: Members) -> None:
        """As add_delta, and the time that it takes: on a CPU; a GPU computes later."""
        if not self.updates.touch(members):
            return
        started = time.perf_counter()
        add_delta(y, x, self.updates, members)
        if not y.is_cuda:
            self.update_s += time.perf_counter() - started


def pass_of(
    inputs: Inputs,
    segments: Sequence[Segment],
    kernels_on: torch.device | None,
    between: Callable[[], None] = _go_on,
) -> Pass:
    """A forward through these segments' layers. kernels_on: see delta.gather."""
    return Pass(
        inputs,
        segments,
        gather([(s.rows, s.layers) for s in segments], kernels_on),
        between,
        [s for s in segments if s.layers.norms],
        [s for s in segments if s.layers.embeddings],
        any(s.layers.own for s in segments),
    )


class LinearWithLoRA(nn.Module):
    """The place of a Linear in the model: its name and number. Linears multiplies by it."""

    def __init__(self, linear: nn.Linear | Int8Linear, path: str, number: int) -> None:
        super().__init__()
        self.linear = linear
        self.path = path
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]: a placeholder."""
        return placeholders.linear(x, self.path, self.linear.out_features)


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

    def rows(self, running: Pass, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """x [1, T, in] -> [1, T, out], or that of each, where there are several."""
        running.between()
        y = self._products(x, running.segments) if running.own else self.frozen(x)
        running.update(y[0], x[0], self.members)
        return y if len(self._sizes) == 1 else torch.split(y, self._sizes, -1)

    def _products(self, x: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Each stretch of rows times its own weights: the base's, merged or replaced ones."""
        stretches: list[tuple[slice, list[FrozenLinear | None]]] = []
        for s in segments:
            own = [s.layers.own.get(path) for path in self.members.paths]
            if stretches and stretches[-1][1] == own:
                stretches[-1] = (slice(stretches[-1][0].start, s.rows.stop), own)
            else:
                stretches.append((s.rows, own))
        if self.frozen.packed is None and any(None in own for _, own in stretches):
            # Here (CUDA) a row's bits depend on how many rows the product has: the base's rows
            # get the product over all rows, as they would without the merged ones beside them.
            y = self.frozen(x)
            for rows, own in stretches:
                self._overwrite(y[:, rows], x[:, rows], own)
            return y
        parts = [self._stretch(x[:, rows], own) for rows, own in stretches]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

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


class NormWithLoRA(nn.Module):
    """A frozen LayerNorm whose rows may each have their own segment's weight and bias."""

    def __init__(self, norm: nn.LayerNorm, path: str) -> None:
        super().__init__()
        self.norm = norm
        self.path = path
        self._fixed = norm.normalized_shape, norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """x [1, T, H] -> the same shape: a placeholder."""
        return placeholders.norm(x, self.path)

    def rows(self, running: Pass, x: Tensor) -> Tensor:
        """x [1, T, H] -> the same shape."""
        y = torch.layer_norm(x, *self._fixed)
        for s in running.norms:
            own = s.layers.norms.get(self.path)
            if own is not None:
                shape = (x.shape[-1],)
                y[:, s.rows] = F.layer_norm(
                    x[:, s.rows], shape, own.weight, own.bias, self.norm.eps
                )
        return y


class EmbeddingWithLoRA(nn.Module):
    """A frozen Embedding whose rows may each have their own segment's table, update or rows."""

    def __init__(self, embedding: nn.Embedding | Int8Embedding, path: str) -> None:
        super().__init__()
        self.embedding = embedding
        self.path = path
        self._dtype = embedding.weight.dtype

    def forward(self, ids: Tensor) -> Tensor:
        """ids [1, T] -> [1, T, dim]: a placeholder."""
        return placeholders.embedding(ids, self.path, self.embedding.embedding_dim, self._dtype)

    def rows(self, running: Pass, ids: Tensor) -> Tensor:
        """ids [1, T] -> [1, T, dim]."""
        y: Tensor = self.embedding(ids)
        for s in running.embeddings:
            change = s.layers.embeddings.get(self.path)
            if change is not None:
                y[0, s.rows] = look_up(change, ids[0, s.rows], y[0, s.rows])
        return y


def look_up(change: Rows, ids: Tensor, y: Tensor) -> Tensor:
    """ids [n] and the base's rows for them y [n, dim] -> the adapter's rows.

    Source: peft.tuners.lora.layer.Embedding.forward, trainable_tokens.layer.TrainableTokensLayer.
    """
    if change.table is not None:
        y = change.table[ids]
    if change.gain is not None:
        y = y * change.gain
    if change.A is not None and change.B is not None:
        y = y + change.A[ids] @ change.B.T
    if change.slot is not None and change.rows is not None:
        slot = change.slot[ids]
        y = torch.where((slot >= 0)[:, None], change.rows[slot], y)
    return y


def insert_lora(model: nn.Module) -> dict[str, LinearWithLoRA]:
    """Put a wrapper in the place of every Linear, LayerNorm and Embedding below `model`.

    Returns the Linears' by path, in the order of their numbers.
    """
    linears: dict[str, LinearWithLoRA] = {}
    for path, module in list(model.named_modules()):
        wrapper: nn.Module
        if isinstance(module, Int8Linear) or type(module) is nn.Linear:
            wrapper = linears[path] = LinearWithLoRA(module, path, len(linears))
        elif type(module) is nn.LayerNorm:
            wrapper = NormWithLoRA(module, path)
        elif isinstance(module, Int8Embedding) or type(module) is nn.Embedding:
            wrapper = EmbeddingWithLoRA(module, path)
        else:
            continue
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, wrapper)
    return linears


@torch.inference_mode()
def merge_lora(wrappers: Mapping[str, LinearWithLoRA], adapter: Adapter, layers: Layers) -> Layers:
    """The adapter's layers with gain * W + BA in the place of every update: a second copy, its own.

    Computed in fp32, stored in the base's dtype; the base itself is not touched, so there is
    nothing to subtract at unmerge: dropping the copy is the unmerge, without drift. What only adds
    a constant stays an update.
    """
    own = dict(layers.own)
    updates = dict(layers.updates)
    for path, lora in adapter.layers.items():
        if not lora.rescales:
            continue
        del updates[path]
        linear = wrappers[path].linear
        weight: Tensor = linear.weight.float()
        bias: Tensor | None = None if linear.bias is None else linear.bias.float()
        if lora.gain is not None:
            weight = lora.gain.float()[:, None] * weight
            bias = None if bias is None else lora.gain.float() * bias
        if lora.shift is not None:
            bias = lora.shift.float() if bias is None else bias + lora.shift.float()
        weight = weight + lora.B.float() @ lora.A.float()
        dtype = linear.weight.dtype
        bias = None if bias is None else bias.to(dtype)
        own[path] = FrozenLinear(weight.to(dtype), bias, keep_weight=False)
    return with_updates(replace(layers, own=own), updates, list(wrappers))


def merged_bytes(wrappers: Mapping[str, LinearWithLoRA], adapter: Adapter) -> int:
    """How many bytes merge_lora's copy will take."""
    return sum(
        packed_bytes(wrappers[path].linear.weight)
        for path, lora in adapter.layers.items()
        if lora.rescales
    )
