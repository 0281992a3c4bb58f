"""A base in int8: every Linear's weights and every table of embeddings, with a scale for each row.

The base is what these numbers say: an adapter's arithmetic that reads plain weights gets them
computed back, and they do not stay in memory. CPU only. Knows modules; knows no adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from app.model import kernel_int8
from app.model.machine import give_back_memory

Read = Callable[[], Tensor]


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [n, m] -> whole numbers int8 [n, m] and scales float32 [n], whose product it is, but
    for half a scale at most.
    """
    scale = weight.abs().amax(1) / kernel_int8.MOST
    steps = torch.where(scale > 0, scale, 1)[:, None]
    return torch.round(weight / steps).to(torch.int8), scale


class Int8Linear(nn.Module):
    """y [..., out] = x [..., in] @ weight.T + bias: a frozen nn.Linear, which it replaces.

    A row of x is quantised by a scale of its own, so its bits do not depend on the rows beside it.
    packed: the weights as the kernel reads them. parts: those that are joined in it.
    """

    scale: Tensor

    def __init__(
        self,
        rows: Tensor,
        scale: Tensor,
        bias: nn.Parameter | None,
        parts: Sequence[Int8Linear] = (),
    ) -> None:
        """rows [out, in], scale [out]: see quantised; rows are not kept. bias [out] float32."""
        super().__init__()
        self.out_features, self.in_features = rows.shape
        self.packed = torch.from_numpy(kernel_int8.packed(rows.numpy()))
        self.register_buffer("scale", scale)
        self.bias = bias
        self._parts = list(parts) or [self]
        self._width = len(self.packed) * kernel_int8.OUTPUTS  # out, and what fills the last tile
        self._scale = self._filled_up(scale)
        self._shift = self._filled_up(torch.zeros_like(scale) if bias is None else bias.detach())
        self._steps = kernel_int8.steps_of(rows.numpy())

    def _filled_up(self, values: Tensor) -> Tensor:
        return torch.cat([values, values.new_zeros(self._width - len(values))])

    @property
    def weight(self) -> Tensor:
        """[out, in] float32, computed at each call."""
        return self.rows().float() * self.scale[:, None]

    def rows(self) -> Tensor:
        """The weights' whole numbers, int8 [out, in]: a copy."""
        tiles = self.packed.numpy()
        return torch.from_numpy(kernel_int8.unpacked(tiles, self.out_features, self.in_features))

    def intact(self) -> bool:
        """Whether what the kernel reads is what the base's own Linears say."""
        rows, scale, bias = _one_above_the_other(self._parts)
        shift = torch.zeros_like(scale) if bias is None else bias
        return (
            torch.equal(self.rows(), rows)
            and torch.equal(self._scale, self._filled_up(scale))
            and torch.equal(self._shift, self._filled_up(shift))
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] float32 -> [..., out]."""
        rows = x.reshape(-1, self.in_features).contiguous().numpy()
        y = np.empty((len(rows), self._width), np.float32)
        multiply = kernel_int8.in_numpy if kernel_int8.why_not() else kernel_int8.multiply
        scale, shift = self._scale.numpy(), self._shift.numpy()
        multiply(rows, self.packed.numpy(), scale, shift, self._steps, y)
        whole = torch.from_numpy(y)
        if self._width > self.out_features:
            whole = whole[:, : self.out_features].contiguous()
        return whole.view(*x.shape[:-1], self.out_features)


def _one_above_the_other(
    linears: Sequence[Int8Linear],
) -> tuple[Tensor, Tensor, nn.Parameter | None]:
    """Their rows, scales and biases."""
    biases = [one.bias.detach() for one in linears if one.bias is not None]
    bias = nn.Parameter(torch.cat(biases), requires_grad=False) if biases else None
    rows, scales = zip(*((one.rows(), one.scale) for one in linears), strict=True)
    return torch.cat(rows), torch.cat(scales), bias


def joined_in_int8(linears: Sequence[Int8Linear]) -> Int8Linear:
    """One for all, which read the same rows and all have a bias or none. They share its memory,
    but for those that do not fill their last tile.
    """
    if len(linears) == 1:
        return linears[0]
    whole = Int8Linear(*_one_above_the_other(linears), parts=linears)
    if all(one.out_features % kernel_int8.OUTPUTS == 0 for one in linears):
        tiles = torch.split(whole.packed, [len(one.packed) for one in linears])
        for one, own in zip(linears, tiles, strict=True):
            one.packed = own
    return whole


class Int8Embedding(nn.Module):
    """A frozen nn.Embedding, which it replaces."""

    table: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        """weight [num, dim] float32; it is not kept."""
        super().__init__()
        table, scale = quantised(weight.detach())
        self.embedding_dim = weight.shape[1]
        self.register_buffer("table", table)
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Tensor:
        """[num, dim] float32, computed at each call."""
        return self.table.float() * self.scale[:, None]

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] -> [..., dim] float32."""
        return self.table[ids].float() * self.scale[ids][..., None]


class Weights(Mapping[str, Tensor]):
    """A base's tensors by name; those in int8 are computed back at each look."""

    def __init__(self, read: Mapping[str, Read]) -> None:
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        return self._read[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._read

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


def quantise(model: nn.Module) -> Weights:
    """Put the same in int8 in the place of every Linear and Embedding below `model`.

    Returns the base's tensors by the names that they had.
    """
    names = [name for name, _ in model.named_parameters()]
    in_int8: dict[str, Int8Linear | Int8Embedding] = {}
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            in_int8[path] = Int8Linear(*quantised(module.weight.detach()), module.bias)
        elif type(module) is nn.Embedding and module.num_embeddings > module.embedding_dim:
            in_int8[path] = Int8Embedding(module.weight)
        else:
            continue
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, in_int8[path])
    for tensor in model.parameters():  # else the whole file would stay mapped for them
        tensor.data = tensor.clone()
    give_back_memory()
    read: dict[str, Read] = {name: tensor.detach for name, tensor in model.named_parameters()}
    read |= {
        f"{path}.weight": partial(getattr, module, "weight") for path, module in in_int8.items()
    }
    return Weights({name: read[name] for name in names})


def frozen_of(model: nn.Module) -> dict[str, Read]:
    """Everything that a base computes with, by name: its parameters, buffers and packed weights."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    packed = {
        f"{path}.weight": module.rows
        for path, module in model.named_modules()
        if isinstance(module, Int8Linear)
    }
    return {name: tensor.detach for name, tensor in tensors} | packed
