"""LoRA around every layer of a frozen encoder: insert, run by segment, merge, unmerge.

Knows modules and segments; knows no names of adapters. The base's weights are only ever read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.adapters.values import Adapter, Rows
from app.model import placeholders
from app.model.delta import Layers, with_updates
from app.model.forward_pass import Pass
from app.model.int8 import Int8Embedding, Int8Linear
from app.model.linear import FrozenLinear, packed_bytes


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
        y = y + FrozenLinear(change.B, None)(change.A[ids])  # whose bits ignore the other rows
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
