"""A canonical adapter -> the files that PEFT loads and an upload may hold: the way back of read.py.

Scales are folded in already, so each lora_alpha is its rank. What an adapter adds to a bias is
lora_B's own bias; what it replaces stands among modules_to_save. Knows no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from app.adapters.base import Base
from app.adapters.files import CONFIG, MODEL_CONFIG, PROMPTS
from app.adapters.heads import POOLERS, SEQUENCE_HEADS, TOKEN_HEADS
from app.adapters.layouts import PEFT_PREFIX
from app.adapters.peft_folder import TASK_TYPES
from app.adapters.recipe import PROBLEM_TYPES
from app.adapters.sentence import Sentence
from app.adapters.values import Adapter, Dense, Head, LoRALayer, Norm

Tensors = dict[str, Tensor]
Json = dict[str, Any]


def peft_files(adapter: Adapter, base: Base, base_id: str) -> tuple[Tensors, dict[str, Json]]:
    """Tensors by PEFT's names, and the JSON files that go beside them, by name.

    adapter: on the CPU in float32; without gains, and its embeddings low-rank (sums.py).
    """
    spelled = {p: base.spellings(p)[adapter.head is not None] for p in base.modules}
    biased = any(layer.shift is not None for layer in adapter.layers.values())
    tensors: Tensors = {}
    ranks: dict[str, int] = {}
    for path, layer in (adapter.layers or _nothing(adapter, base)).items():
        parts = _lora(layer, biased)
        ranks[spelled[path]] = parts["lora_A.weight"].shape[0]
        tensors |= _under(spelled[path], parts)
    for path, rows in adapter.embeddings.items():
        if rows.A is not None and rows.B is not None:
            ranks[spelled[path]] = rows.A.shape[1]
            parts = {"lora_embedding_A": rows.A.T, "lora_embedding_B": rows.B}
            tensors |= _under(spelled[path], parts)
    whole: dict[str, Dense | Norm] = {
        **{spelled[path]: dense for path, dense in adapter.replaced.items()},
        **{spelled[path]: norm for path, norm in adapter.norms.items()},
        **({} if adapter.head is None else _head(adapter.head, adapter, base)),
    }
    for path, module in whole.items():
        tensors |= _under(path, {"weight": module.weight, "bias": module.bias})
    config = {
        **_lora_config(ranks, list(whole), biased),
        "task_type": TASK_TYPES[adapter.task],
        "base_model_name_or_path": base_id,
        "task": adapter.task,
        **_sentence(adapter.sentence),
    }
    files = {CONFIG: config}
    if adapter.head is not None:
        files[MODEL_CONFIG] = _model_config(adapter.head, adapter, base)
    if adapter.sentence.truncate_dim is not None:
        files[PROMPTS] = {"truncate_dim": adapter.sentence.truncate_dim}
    return tensors, files


def _under(path: str, parts: Mapping[str, Tensor | None]) -> Tensors:
    return {
        f"{PEFT_PREFIX}{path}.{part}": tensor.float().contiguous()
        for part, tensor in parts.items()
        if tensor is not None
    }


def _nothing(adapter: Adapter, base: Base) -> dict[str, LoRALayer]:
    """An update that changes nothing, since PEFT loads no adapter without one."""
    free = (item for item in base.linears.items() if item[0] not in adapter.replaced)
    return {
        path: LoRALayer(torch.zeros(0, in_), torch.zeros(out, 0))
        for path, (out, in_) in [*free][:1]
    }


def _lora(layer: LoRALayer, biased: bool) -> dict[str, Tensor]:
    """A and B, of rank 1 and zero where the layer has none; biased: each layer has lora_B's."""
    A, B = layer.A, layer.B
    if not layer.rank:
        A, B = torch.zeros(1, A.shape[1]), torch.zeros(B.shape[0], 1)
    parts = {"lora_A.weight": A, "lora_B.weight": B}
    if biased:
        parts["lora_B.bias"] = torch.zeros(B.shape[0]) if layer.shift is None else layer.shift
    return parts


def _head(head: Head, adapter: Adapter, base: Base) -> dict[str, Dense | Norm]:
    """Its layers by their paths in the model with a head."""
    keys = (TOKEN_HEADS if adapter.task == "tokens" else SEQUENCE_HEADS)[base.model_type]
    layers: dict[str, Dense | Norm] = {keys.out: head.out}
    if head.dense is not None:
        dense = keys.dense or base.spellings(POOLERS[base.model_type])[True]
        layers[dense] = head.dense
    if head.norm is not None and keys.norm is not None:
        layers[keys.norm] = head.norm
    return layers


def _lora_config(ranks: Mapping[str, int], whole: list[str], biased: bool) -> Json:
    """LoraConfig's fields; each module by its whole path, so that nothing else matches."""
    rank = max(ranks.values(), default=1)
    own = {path: r for path, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": own,
        "alpha_pattern": own,
        "lora_bias": biased,
        "target_modules": sorted(ranks),
        "modules_to_save": sorted(whole) or None,
        "inference_mode": True,
    }


def _sentence(sentence: Sentence) -> Json:
    """How it makes vectors, under the names that config/read_recipe.py reads."""
    fields = {
        "pooling": sentence.pooling,
        "normalize": sentence.normalize,
        "max_length": sentence.max_length,
        "prompts": sentence.prompts and dict(sentence.prompts),
        "default_prompt_name": sentence.default_prompt,
        "dimensions": sentence.dimensions and list(sentence.dimensions),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _model_config(head: Head, adapter: Adapter, base: Base) -> Json:
    """What transformers' config.json says of a head."""
    problem_type = next(p for p, scores in PROBLEM_TYPES.items() if scores == adapter.scores)
    labels = {str(i): label for i, label in enumerate(adapter.labels)}
    config: Json = {"id2label": labels, "problem_type": problem_type}
    if SEQUENCE_HEADS[base.model_type].source == "classifier_pooling" and head.source != "tokens":
        config["classifier_pooling"] = head.source
    return config
