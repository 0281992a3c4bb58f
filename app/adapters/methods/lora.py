"""LoRA (Hu et al. 2021) and what its config adds: rsLoRA, DoRA, PiSSA, OLoRA, KaSA, BD-LoRA."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from app.adapters.methods.layer import (
    Layer,
    Shared,
    block_diagonal,
    check_rank,
    low_rank,
    smallest,
    to_float,
)
from app.adapters.methods.method import Method
from app.adapters.methods.whole import whole_table
from app.adapters.recipe import Recipe
from app.adapters.refusals import Misfit
from app.adapters.values import Dense, LoRALayer, Rows, Scaling


def fold_lora(layer: Layer, recipe: Recipe, _: Shared) -> tuple[LoRALayer | Dense, Scaling]:
    """LoRA on a Linear, with whatever its config adds, and its scale.

    y = b + g * (W' x + s B A x + s c): g = 1, or DoRA's m / ||W' + s B A|| per output row (Liu et
    al. 2024); c = lora_B's bias; W' = W, or what PiSSA, OLoRA or KaSA leave of it (_residual).
    A [r, in], B [out, r]. Raises Misfit. Source: peft.tuners.lora.layer.Linear, lora.variants.
    """
    check_switches(layer, recipe)
    A, B = _matrices(layer, recipe)
    scaling = _scaling(layer, recipe, A.shape[0])
    B = B * scaling.scale
    if "diag" in layer.parts:
        B = B * layer.part("diag", A.shape[0])
    elif recipe.truncated:
        raise Misfit("the config says KaSA, and lora_diag is missing", "A")
    removed = _residual(layer, recipe, A.shape[0], scaling.scale)
    if removed is not None:
        A, B = torch.cat([A, removed[0]]), torch.cat([B, -removed[1]], dim=1)
    gain = None
    if "magnitude" in layer.parts:
        gain = _magnitude(layer) / torch.linalg.vector_norm(layer.frozen + B @ A, dim=1)
        B = gain[:, None] * B
    bias = layer.new_bias
    if "B.bias" in layer.parts:
        bias = bias + layer.part("B.bias", layer.out) * scaling.scale
    form = low_rank if removed is None else smallest
    return form(layer, A, B, gain, bias), scaling


def fold_embedding(layer: Layer, recipe: Recipe) -> tuple[Rows, Scaling]:
    """LoRA on an embedding: y = g * (table[id] + s A[:, id] B.T).

    embedding_A [r, num], embedding_B [dim, r]; g = 1, or DoRA's m / ||table + s (B A).T|| per
    column. Raises Misfit. Source: peft.tuners.lora.layer.Embedding, lora.dora.DoraEmbeddingLayer.
    """
    check_switches(layer, recipe)
    num, dim = layer.weight.shape
    A = layer.part("embedding_A", None, num)
    B = layer.part("embedding_B", dim, A.shape[0])
    if not A.shape[0]:
        raise Misfit("has rank 0: there is nothing in it", "embedding_A")
    check_rank(A.shape[0], recipe.expected_rank(layer.path), "embedding_A")
    scaling = recipe.scaling(layer.path, A.shape[0])
    B = B * scaling.scale
    table = whole_table(layer)
    gain = None
    if "magnitude" in layer.parts:
        frozen = layer.frozen if table is None else table.double()
        gain = layer.part("magnitude", dim) / torch.linalg.vector_norm(frozen + (B @ A).T, dim=0)
        B = gain[:, None] * B
    rows = Rows(table, to_float(A.T), to_float(B), None if gain is None else to_float(gain))
    return rows, scaling


def check_switches(layer: Layer, recipe: Recipe) -> None:
    """Raises Misfit where the file lacks what the config switches on, or has what it does not."""
    if "diag" in layer.parts and not recipe.configured:
        raise Misfit("is KaSA's, whose adapter_config.json is needed: send it along", "diag")
    switches = [("magnitude", "use_dora", recipe.dora)]
    if "A" in layer.parts:
        switches += [("diag", "kasa_config", recipe.truncated)]
    if "A" in layer.parts and recipe.blocks is None:  # a block-diagonal B has no bias
        switches += [("B.bias", "lora_bias", recipe.lora_bias)]
    pair = "A" if "A" in layer.parts else "embedding_A"
    for part, name, on in switches:
        if part in layer.parts and not on:
            raise Misfit(f"is there, but the config's {name} is off: PEFT would leave it out", part)
        if on and part not in layer.parts and pair in layer.parts:
            whose = "the config's" if recipe.configured else "other layers'"
            raise Misfit(f"{whose} {name} is on, but this layer has no {part}", pair)


def _matrices(layer: Layer, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r]; BD-LoRA's blocks are set on the diagonal of the whole matrix.

    Source: peft.tuners.lora.variants.BlockDiagonalLinear.weight_as_blockdiagonal_matrix.
    """
    A, B = layer.part("A", None, None), layer.part("B", None, None)
    if recipe.blocks is not None:
        if A.shape[1] * recipe.blocks == layer.in_ and A.shape[0] % recipe.blocks == 0:
            A = block_diagonal(A.chunk(recipe.blocks))
        if B.shape[1] * recipe.blocks == A.shape[0] and layer.out % recipe.blocks == 0:
            B = block_diagonal(B.chunk(recipe.blocks))
    if A.shape[0] != B.shape[1]:
        raise Misfit(f"A's rank {A.shape[0]} is not B's rank {B.shape[1]}", "A")
    made_for, own = (A.shape[1], B.shape[0]), (layer.in_, layer.out)
    if made_for != own:
        reason = f"made for a layer {made_for[0]} -> {made_for[1]}"
        raise Misfit(f"{reason}; this base's is {own[0]} -> {own[1]}", "A")
    if not A.shape[0]:
        raise Misfit("has rank 0: there is nothing in it", "A")
    return A, B


def _scaling(layer: Layer, recipe: Recipe, rank: int) -> Scaling:
    """By the config's rank, which PiSSA and OLoRA cut to the layer's own where it is larger."""
    configured = recipe.expected_rank(layer.path) or rank
    largest = min(layer.out, layer.in_) if recipe.init else configured
    if rank != min(configured, largest):
        raise Misfit(f"has rank {rank}, while the config says {configured}", "A")
    return recipe.scaling(layer.path, configured)


def _residual(
    layer: Layer, recipe: Recipe, rank: int, scale: float
) -> tuple[Tensor, Tensor] | None:
    """What PEFT takes out of the base's weight at load, as A0 [n, in] and B0 [out, n], or None.

    PiSSA (Meng et al. 2024) the r largest singular values, OLoRA (Büyükakyüz 2024) s times the
    first r of QR; then KaSA (2024) the r smallest singular values of what is left. In float32, as
    PEFT does, so that the base's own nearly equal singular values fall the same way.
    """
    if recipe.init is None and not recipe.truncated:
        return None
    weight = layer.weight.detach().cpu().float()
    pairs = []
    match recipe.init:
        case "olora":
            Q, R = torch.linalg.qr(weight)
            pairs.append((R[:rank], scale * Q[:, :rank]))
        case "pissa":
            U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
            pairs.append((Vh[:rank], U[:, :rank] * S[:rank]))
        case None:
            pass
        case _:
            assert_never(recipe.init)
    if recipe.truncated:
        for A0, B0 in pairs:
            weight = weight - B0 @ A0
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
        if rank >= len(S):
            raise Misfit(f"KaSA's rank {rank} is not under the layer's {len(S)}", "A")
        pairs.append((Vh[-rank:], U[:, -rank:] * S[-rank:]))
    return torch.cat([A for A, _ in pairs]).double(), torch.cat([B for _, B in pairs], 1).double()


def _magnitude(layer: Layer) -> Tensor:
    """DoRA's m [out]; early PEFT saved it as [1, out] or [out, 1]."""
    if layer.parts["magnitude"].numel() != layer.out:
        layer.part("magnitude", layer.out)  # raises, naming the shapes
    return layer.parts["magnitude"].double().reshape(layer.out)


MAGNITUDE = {"lora_magnitude_vector.weight": "magnitude", "lora_magnitude_vector": "magnitude"}
WITHOUT_EFFECT = frozenset({
    "corda_config", "eva_config", "init_lora_weights", "kasa_config", "loftq_config", "lora_bias",
    "lora_dropout", "lora_ga_config", "megatron_core", "qalora_group_size", "runtime_config",
    "lora_alpha", "trainable_token_indices", "use_bdlora", "use_dora", "use_rslora",
})  # fmt: skip
REFUSED = {
    "alora_invocation_tokens": "activated LoRA (aLoRA) acts on part of a text only",
    "arrow_config": "arrow routes each token through several adapters",
    "layer_replication": "layer replication builds another base",
    "megatron_config": "Megatron layers",
    "monteclora_config": "MonteCLoRA keeps a sampler beside its matrices",
    "target_parameters": "LoRA on bare parameters; an encoder's are all in layers",
    "use_qalora": "QA-LoRA pools its input in groups of a quantised base",
    "velora_config": "VeLoRA keeps projections beside its matrices",
}
LORA = Method(
    "LORA",
    fold_lora,
    fold_embedding,
    linear={
        "lora_A.weight": "A",
        "lora_B.weight": "B",
        "lora_B.bias": "B.bias",
        "lora_diag": "diag",
    }
    | MAGNITUDE,
    embedding={"lora_embedding_A": "embedding_A", "lora_embedding_B": "embedding_B"} | MAGNITUDE,
    without_effect=WITHOUT_EFFECT,
    refused=REFUSED,
    free_scale=True,
    least_rank=1,
)
