"""What a file holds beside low-rank layers: the head, and layers of the base that it replaces.

Knows where each architecture keeps its sequence-classification head; knows no model class.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from app.adapters.adapter import Dense, Head
from app.adapters.base_shape import BaseShape
from app.adapters.config import Recipe
from app.adapters.upload import AdapterRejected, Problem

PEFT_PREFIX = "base_model.model."
UNSERVED_SUFFIXES = {
    "lora_magnitude_vector": "DoRA's magnitude",
    "lora_embedding_": "LoRA on an embedding",
    "lora_B.bias": "a bias on lora_B",
    "token_adapter.": "trained token rows",
    "lora_E": "AdaLoRA",
    "lora_diag": "KaSA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "ia3_l": "IA3",
    "vera_lambda": "VeRA",
    "oft_": "OFT",
    "fourierft": "FourierFT",
}


@dataclass(frozen=True)
class HeadKeys:
    """Where an architecture's sequence-classification head keeps its layers.

    Source: transformers' <Architecture>ForSequenceClassification.
    """

    source: Literal["cls", "pooler"]
    dense: str | None
    activation: Literal["tanh", "relu", "gelu"] | None
    out: str


ROBERTA_HEAD = HeadKeys("cls", "classifier.dense", "tanh", "classifier.out_proj")
HEADS = {
    "bert": HeadKeys("pooler", None, None, "classifier"),
    "albert": HeadKeys("pooler", None, None, "classifier"),
    "roberta": ROBERTA_HEAD,
    "xlm-roberta": ROBERTA_HEAD,
    "camembert": ROBERTA_HEAD,
    "electra": HeadKeys("cls", "classifier.dense", "gelu", "classifier.out_proj"),
    "distilbert": HeadKeys("cls", "pre_classifier", "relu", "classifier"),
}


def read_denses(rest: dict[str, Tensor], problems: list[Problem]) -> dict[str, Dense]:
    """weight and bias of each module in `rest`; anything else is a problem."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in rest.items():
        path, _, leaf = name.removeprefix(PEFT_PREFIX).rpartition(".")
        known = next((what for suffix, what in UNSERVED_SUFFIXES.items() if suffix in name), None)
        if known:
            problems.append(Problem(f"{known} is not served", name))
        elif leaf in ("weight", "bias") and path and tensor.dim() == (2 if leaf == "weight" else 1):
            if leaf in parts.setdefault(path, {}):
                problems.append(Problem(f"{path}.{leaf} is given twice", name))
            parts[path][leaf] = tensor.to(torch.float32)
            if not torch.isfinite(parts[path][leaf]).all():
                problems.append(Problem("is not finite in float32", name))
        else:
            problems.append(Problem("is no tensor that this server knows", name))
    denses = {}
    for path, found in parts.items():
        if "weight" not in found:
            problems.append(Problem("a bias without its weight is not served", f"{path}.bias"))
        elif "bias" in found and found["bias"].shape[0] != found["weight"].shape[0]:
            problems.append(Problem("bias and weight do not fit each other", f"{path}.bias"))
        else:
            denses[path] = Dense(found["weight"], found.get("bias"))
    return denses


def take_head(
    dense: dict[str, Dense], recipe: Recipe, base: BaseShape, problems: list[Problem]
) -> Head | None:
    """Take the head's layers out of `dense`."""
    keys = HEADS.get(base.model_type)
    if keys is None or keys.out not in dense:
        if recipe.task == "classify" and not problems:
            where = f"{keys.out}.weight" if keys else "a head"
            problems.append(Problem(f"is a classification adapter, but {where} is not in the file"))
        return None
    out = dense.pop(keys.out)
    inner = dense.pop(keys.dense, None) if keys.dense else None
    if keys.dense and inner is None:
        problems.append(
            Problem(
                f"{keys.dense} is not in the file, and the base has none: "
                "train with it in modules_to_save",
                f"{keys.dense}.weight",
            )
        )
    if keys.source == "pooler" and not base.has_pooler:
        problems.append(
            Problem("the head reads the pooler, and this base has none", f"{keys.out}.weight")
        )
    for path, layer in ((keys.dense, inner), (keys.out, out)):
        if layer is not None and layer.bias is None:
            problems.append(
                Problem("has no bias in the file, and this head has one", f"{path}.bias")
            )
        if layer is not None and layer.weight.shape[1] != base.hidden:
            width = layer.weight.shape[1]
            problems.append(
                Problem(f"reads {width} values; this base is {base.hidden}-wide", f"{path}.weight")
            )
    if inner is not None and inner.weight.shape[0] != out.weight.shape[1]:
        problems.append(
            Problem("the head's two layers do not fit each other", f"{keys.dense}.weight")
        )
    return Head(keys.source, inner, keys.activation if keys.dense else None, out)


def take_replaced(
    dense: dict[str, Dense],
    adapted: Collection[str],
    base: BaseShape,
    problems: list[Problem],
) -> dict[str, Dense]:
    """The Linear layers of the base that the file replaces whole."""
    replaced: dict[str, Dense] = {}
    for path, layer in dense.items():
        target = base.resolve(path)
        name = f"{path}.weight"
        if target is None:
            problems.append(
                Problem("belongs to no linear layer of this base nor to its head", name)
            )
        elif target in replaced:
            problems.append(Problem(f"{target} is given twice", name))
        elif (layer.bias is None) == (target in base.biased):
            has = "one" if target in base.biased else "none"
            problems.append(
                Problem(
                    f"replaces a layer; its bias is missing or extra: the base's has {has}", name
                )
            )
        elif target in adapted:
            problems.append(Problem("replaces a layer that the file also adapts", name))
        elif tuple(layer.weight.shape) != base.linears[target]:
            out, in_ = base.linears[target]
            problems.append(
                Problem(f"has shape {list(layer.weight.shape)}; the base's is [{out}, {in_}]", name)
            )
        else:
            replaced[target] = layer
    return replaced


def check_labels(head: Head | None, recipe: Recipe) -> tuple[str, ...]:
    if head is None:
        return ()
    labels = recipe.labels or tuple(f"LABEL_{i}" for i in range(head.labels))
    if len(labels) != head.labels:
        raise AdapterRejected(f"{len(labels)} labels are given for a head of {head.labels}")
    if any("\ud800" <= c <= "\udfff" for label in labels for c in label):
        raise AdapterRejected("a label holds half of a surrogate pair, which is no character")
    if len(set(labels)) != len(labels):
        raise AdapterRejected("a label is given twice")
    return labels
