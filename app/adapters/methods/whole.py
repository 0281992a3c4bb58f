"""Layers that the file gives whole, or the bias alone: Linears, LayerNorms, embeddings.

No method of its own: PEFT's modules_to_save and bias=all stand beside any method. One function per
form, as the methods have for their formulas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.adapters.methods.layer import Layer, dense, rank_zero, to_float
from app.adapters.refusals import Misfit
from app.adapters.values import Dense, LoRALayer, Norm


def whole_table(layer: Layer) -> Tensor | None:
    """An embedding given whole; None where it is missing, or the base's own. Raises Misfit."""
    if "weight" not in layer.parts:
        return None
    table = to_float(layer.as_filed("weight", *layer.weight.shape))
    return None if repeats(layer) else table


def whole_norm(layer: Layer) -> Norm:
    """A LayerNorm given whole, or its bias alone (PEFT's bias=all). Raises Misfit."""
    width = layer.weight.shape[0]
    weight = layer.part("weight", width) if "weight" in layer.parts else layer.frozen
    if layer.bias is None:
        if "bias" in layer.parts:
            raise Misfit("has a bias in the file, and this base's has none", "bias")
        return Norm(to_float(weight), None)
    if "weight" in layer.parts and "bias" not in layer.parts:
        raise Misfit("has no bias in the file, and this base's has one", "weight")
    return Norm(to_float(weight), to_float(layer.part("bias", width)))


def whole_linear(layer: Layer) -> LoRALayer | Dense:
    """A Linear given whole (PEFT's modules_to_save), or its bias alone (bias=all). Raises Misfit."""
    if "bias" in layer.parts and layer.bias is None:
        raise Misfit("has a bias in the file, and this base's has none", "bias")
    if "weight" not in layer.parts:
        return rank_zero(layer, None, layer.new_bias)
    if "bias" not in layer.parts and layer.bias is not None:
        raise Misfit("replaces a layer; its bias is missing, and the base's has one", "weight")
    weight = layer.as_filed("weight", layer.out, layer.in_)
    return dense(layer, weight, layer.new_bias)


def repeats(layer: Layer) -> bool:
    """Is the file's whole weight the base's own? A rounded copy is not, and PEFT loads it."""
    return torch.equal(layer.parts["weight"].float(), layer.weight.detach().cpu().float())
