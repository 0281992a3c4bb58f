"""An adapter as the folder that PEFT loads: names and config in PEFT's own words.

An adapter that came with PEFT's config keeps it, and its tensors get PEFT's names. One that came
bare or in another layout gets a LoraConfig that says the same. Knows no file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from app.adapters.base import Base
from app.adapters.layouts import BASE_LAYER, PEFT_PREFIX, Parts, plain_name, read_names
from app.adapters.methods.lora import LORA
from app.adapters.methods.table import WHOLE
from app.adapters.recipe import Recipe
from app.adapters.values import Adapter

TASK_TYPES = {"classify": "SEQ_CLS", "tokens": "TOKEN_CLS", "embed": "FEATURE_EXTRACTION"}
SUFFIXES = {part: suffix for suffix, part in {**LORA.linear, **LORA.embedding}.items()}


def peft_tensors(
    tensors: Mapping[str, Tensor], recipe: Recipe, base: Base, adapter: Adapter
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """(tensors by PEFT's names, the config to send along; None: the uploaded one).

    tensors: the upload's. Raises AdapterRejected, as read_names does.
    """
    if recipe.configured and adapter.layout == "peft":
        plain = {name: plain_name(name, base) for name in tensors}
        return {new: tensors[name] for name, new in plain.items() if new is not None}, None
    parts = read_names(tensors, recipe, base)
    renamed: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    whole: list[str] = []
    for path, module in parts.modules.items():
        target = base.resolve(path)
        spelled = path if target is None else base.spellings(target)[adapter.head is not None]
        matrix = module.get("A", module.get("embedding_A"))
        if matrix is not None:
            ranks[spelled] = matrix.shape[0]
        elif "weight" in module:
            whole.append(path.split(".", 1)[0] if target is None else spelled)
        renamed |= {
            f"{PEFT_PREFIX}{spelled}.{_suffix(part, matrix is not None)}": tensor.contiguous()
            for part, tensor in module.items()
            if not (part == "weight" and matrix is not None)
        }
    return renamed, _config(ranks, whole, parts, recipe, adapter)


def _suffix(part: str, adapted: bool) -> str:
    if part in WHOLE:
        return f"{BASE_LAYER}.{part}" if adapted else part
    return SUFFIXES[part]


def _config(
    ranks: Mapping[str, int], whole: list[str], parts: Parts, recipe: Recipe, adapter: Adapter
) -> dict[str, Any]:
    """LoraConfig's fields; each module by its whole path, so that nothing else matches."""
    trained = parts.all_parts()
    rank = max(ranks.values(), default=1)
    alpha, alphas = recipe.alpha, dict(recipe.alpha_pattern)
    if alpha is None and recipe.given_scale is not None:
        each = {
            path: recipe.given_scale * (r**0.5 if recipe.rslora else r) for path, r in ranks.items()
        }
        alpha = max(each.values(), default=None)
        alphas = {path: own for path, own in each.items() if own != alpha}
    return {
        "peft_type": "LORA",
        "task_type": TASK_TYPES[adapter.task],
        "base_model_name_or_path": recipe.made_for,
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": recipe.rslora,
        "rank_pattern": {path: r for path, r in ranks.items() if r != rank},
        "alpha_pattern": alphas,
        "use_dora": "magnitude" in trained,
        "lora_bias": "B.bias" in trained,
        "target_modules": sorted(ranks),
        "modules_to_save": sorted(set(whole)) or None,
        "inference_mode": True,
    }


def metadata_of(query: Mapping[str, Any]) -> dict[str, str]:
    """The query's members as a file's __metadata__; without layout and scale, now PEFT's own."""
    fields = {k: json.dumps(value) for k, value in query.items() if k not in ("layout", "scale")}
    return {"format": "pt", **fields}


def over_config(config: Mapping[str, Any], query: Mapping[str, Any]) -> dict[str, Any]:
    """An uploaded config in which the query's members stand, as they did at the upload."""
    return {**config, **{name: value for name, value in query.items() if name in config}}
