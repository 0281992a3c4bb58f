"""What an adapter is once read: low-rank layers by module path, a head, labels.

Plain data, frozen. Knows neither the file it came from (layouts.py) nor who serves it (registry.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["mean", "cls", "last", "max", "pooler"]
Task = Literal["embed", "classify"]
Scores = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True, eq=False)
class LoRALayer:
    """One module's low-rank update: y += (x @ A.T) @ B.T, the scale folded into B.

    A [r, in], B [out, r], one dtype. Hu et al. 2021, eq. 3.
    """

    A: Tensor
    B: Tensor

    @property
    def rank(self) -> int:
        return self.A.shape[0]


@dataclass(frozen=True, eq=False)
class Dense:
    """A whole linear layer that an adapter brings along. weight [out, in], bias [out]."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Head:
    """pooled row [H] -> logits [L]: optional dense + activation, then the output layer.

    source "cls": the first token's last hidden state; "pooler": the base's own pooler's output.
    """

    source: Literal["cls", "pooler"]
    dense: Dense | None
    activation: Literal["tanh", "relu", "gelu"] | None
    out: Dense

    @property
    def labels(self) -> int:
        return self.out.weight.shape[0]


@dataclass(frozen=True, eq=False)
class Adapter:
    """A canonical adapter: all that the forward needs, all scales folded.

    layers: by the base's module path. replaced: Linear layers of the base that the adapter
    replaces whole (PEFT's modules_to_save). pooling, normalize, max_length: None means the base's.
    """

    layers: Mapping[str, LoRALayer]
    layout: str
    scale: float | None
    task: Task = "embed"
    replaced: Mapping[str, Dense] = field(default_factory=dict)
    head: Head | None = None
    labels: tuple[str, ...] = ()
    scores: Scores = "softmax"
    pooling: Pooling | None = None
    normalize: bool | None = None
    max_length: int | None = None

    @property
    def rank(self) -> int:
        """The largest rank of its layers; 0 without any."""
        return max((layer.rank for layer in self.layers.values()), default=0)

    @property
    def targets(self) -> dict[str, int]:
        """How many layers of each module name, e.g. {"query": 6, "value": 6}."""
        counts: dict[str, int] = {}
        for path in [*self.layers, *self.replaced]:
            name = path.rsplit(".", 1)[-1]
            counts[name] = counts.get(name, 0) + 1
        return counts

    @property
    def resident_bytes(self) -> int:
        layers = [t for layer in self.layers.values() for t in (layer.A, layer.B)]
        denses = [*self.replaced.values()]
        if self.head is not None:
            denses += [d for d in (self.head.dense, self.head.out) if d is not None]
        tensors = layers + [t for d in denses for t in (d.weight, d.bias) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)


def fold(A: Tensor, B: Tensor, scale: float) -> LoRALayer:
    """A [r, in] and B [out, r] of any float dtype -> fp32 with the scale in B.

    scale: alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023). In float64 in between,
    so that the product is rounded once.
    """
    return LoRALayer(
        A.to(torch.float32).contiguous(),
        (B.to(torch.float64) * scale).to(torch.float32).contiguous(),
    )


def move(adapter: Adapter, device: torch.device, dtype: torch.dtype) -> Adapter:
    """The same adapter with every tensor on the base's device, in the base's dtype."""

    def to(tensor: Tensor) -> Tensor:
        return tensor.to(device=device, dtype=dtype)

    def dense(d: Dense) -> Dense:
        return Dense(to(d.weight), None if d.bias is None else to(d.bias))

    head = adapter.head
    return replace(
        adapter,
        layers={path: LoRALayer(to(lora.A), to(lora.B)) for path, lora in adapter.layers.items()},
        replaced={path: dense(d) for path, d in adapter.replaced.items()},
        head=None
        if head is None
        else replace(
            head, dense=None if head.dense is None else dense(head.dense), out=dense(head.out)
        ),
    )
