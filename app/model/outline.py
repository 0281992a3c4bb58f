"""A base without its numbers: what its config says, its layers by path, where its weights stand.

Enough to build its layers without transformers' classes. Knows modules and checkpoints' names; runs
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

Kind = type[nn.Module]
LAYERS: Mapping[str, Kind] = {
    kind.__name__: kind for kind in (nn.Linear, nn.LayerNorm, nn.Embedding)
}


@dataclass(frozen=True)
class Facts:
    """What the config says, as transformers reads it. padding: the padding token's id. positions:
    the table's length. head_width: of one attention head. takes_types: whether the forward reads
    token types. architectures, id2label, problem_type: of the base's own head.
    """

    model_type: str
    prefix: str
    hidden: int
    layers: int
    heads: int
    head_width: int
    vocabulary: int
    padding: int | None
    positions: int
    takes_types: bool
    classifier_pooling: str
    classifier_activation: str
    norm_eps: float
    architectures: Any
    id2label: Any
    problem_type: Any


@dataclass(frozen=True)
class Layer:
    """A module by its path. kind: of LAYERS, with its arguments; "": one that only holds others."""

    path: str
    kind: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Outline:
    """layers: in the modules' order. weights: each parameter's name in the checkpoint's files."""

    layers: list[Layer]
    weights: dict[str, str]


def outline_of(model: nn.Module, folder: Path, dtype: torch.dtype) -> Outline | None:
    """None: it holds what cannot be built from its files alone, as a parameter that was converted.

    model: as it was loaded in that dtype, on the CPU.
    """
    layers = [_layer(path, module) for path, module in model.named_modules()]
    names = dict(model.named_parameters())
    if model.state_dict().keys() != names.keys():
        return None
    weights: dict[str, str] = {}
    for name, found in _in_checkpoint(folder, names, str(getattr(model, "base_model_prefix", ""))):
        key, tensor = found
        if name in weights or not torch.equal(tensor.to(dtype), names[name]):
            return None
        weights[name] = key
    known = [layer for layer in layers if layer is not None]
    whole = len(known) == len(layers) and weights.keys() == names.keys()
    return Outline(known, weights) if whole else None


def build(outline: Outline, folder: Path, dtype: torch.dtype) -> nn.Module:
    """The layers with their weights, on the CPU; without buffers. Raises OSError, SafetensorError,
    LookupError.
    """
    root = nn.Module()
    for layer in outline.layers:
        if layer.path:
            parent, leaf = _parent(root, layer.path)
            parent.add_module(leaf, _without_weights(layer))
    keys = {key: name for name, key in outline.weights.items()}
    for key, tensor in _tensors(folder, keys):
        parent, leaf = _parent(root, keys.pop(key))
        own = nn.Parameter(tensor.to(dtype), requires_grad=False)
        parent.register_parameter(leaf, own)
    if keys:
        raise LookupError(f"{folder} lacks {min(keys)}")
    return root


def _without_weights(layer: Layer) -> nn.Module:
    more: dict[str, Any] = {}
    if layer.kind == nn.Embedding.__name__:  # else torch imports its compiler to draw no numbers
        shape = layer.arguments["num_embeddings"], layer.arguments["embedding_dim"]
        more["_weight"] = torch.empty(shape, device="meta")
    with torch.device("meta"):
        return LAYERS[layer.kind](**layer.arguments, **more) if layer.kind else nn.Module()


def shapes_of(folder: Path) -> list[tuple[str, str, list[int]]]:
    """Of every tensor in the checkpoint: its name, dtype and shape. Raises OSError,
    SafetensorError.
    """
    shapes = []
    for path in checkpoint(folder):
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            shapes += [(key, one.get_dtype(), one.get_shape()) for key, one in slices.items()]
    return shapes


def checkpoint(folder: Path) -> list[Path]:
    """Its files."""
    return sorted(folder.glob("model*.safetensors"))


def _layer(path: str, module: nn.Module) -> Layer | None:
    """None: one that computes otherwise than those we build."""
    arguments: dict[str, Any] = {}
    if isinstance(module, nn.Linear):
        arguments |= {"in_features": module.in_features, "out_features": module.out_features}
        arguments["bias"] = module.bias is not None
    elif isinstance(module, nn.LayerNorm):
        arguments |= {"normalized_shape": list(module.normalized_shape), "eps": module.eps}
        arguments |= {"elementwise_affine": module.weight is not None}
        arguments["bias"] = module.bias is not None
    elif isinstance(module, nn.Embedding):
        if module.max_norm is not None:
            return None
        arguments["num_embeddings"] = module.num_embeddings
        arguments["embedding_dim"] = module.embedding_dim
    else:
        return Layer(path, "", {})
    kind = type(module).__name__
    return Layer(path, kind, arguments) if LAYERS.get(kind) is type(module) else None


def _in_checkpoint(
    folder: Path, names: Mapping[str, Tensor], prefix: str
) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    """Each parameter that a checkpoint has under a usual name, with that name and its value."""
    usual = {spelling: name for name in names for spelling in _spellings(name, prefix)}
    for key, tensor in _tensors(folder, usual):
        yield usual[key], (key, tensor)


def _spellings(name: str, prefix: str) -> Iterator[str]:
    """In a bare encoder's checkpoint, one with a head, and those of TensorFlow's days."""
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    old = old.replace("LayerNorm.bias", "LayerNorm.beta")
    for spelling in (name, old):
        yield spelling
        yield f"{prefix}.{spelling}"


def _tensors(folder: Path, wanted: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for path in checkpoint(folder):
        with safe_open(path, framework="pt") as file:
            for key in wanted.keys() & set(file.keys()):
                yield key, file.get_tensor(key)


def _parent(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, leaf = path.rpartition(".")
    return root.get_submodule(parent), leaf
