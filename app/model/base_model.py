"""transformers' model of a base: which architectures are served, and why others are not.

A start that finds what an earlier one has kept does without this, and transformers' imports. Knows
files, configs and modules; knows no adapters and runs nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModel
from transformers.utils.logging import disable_progress_bar

from app.model import attention
from app.model.base_files import BaseFiles, BaseRefused
from app.model.machine import first_line
from app.model.outline import Facts
from app.model.written import takes_types

NAME = "bert_lora_packed"  # of our attention
SERVED = (
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "distilbert",
    "electra",
    "albert",
    "modernbert",
    "jina_embeddings_v3",
    "nomic_bert",
    "gte",
    "xlm-roberta-xl",
)
ROTARY = ("modernbert", "jina_embeddings_v3", "nomic_bert", "gte")
GROWING_ROPES = ("dynamic", "longrope")  # their angles depend on the longest text of a batch
WHY_NOT = dict.fromkeys(
    ("deberta-v2", "mpnet"),
    "its attention does not go through transformers' attention interface, so packed sequences "
    "would see each other",
)


def read_config(files: BaseFiles) -> Any:
    """transformers' config of the base. Raises BaseRefused for what would be served wrong."""
    try:
        config = AutoConfig.from_pretrained(files.folder)
    except (OSError, ValueError, KeyError) as error:
        raise BaseRefused(f"{files.id} has no readable config.json: {error}") from None
    kind = config.model_type
    if kind not in SERVED:
        why = WHY_NOT.get(kind, f"served are {', '.join(SERVED)}")
        raise BaseRefused(f"{files.id} is a {kind} model, which cannot be served right: {why}")
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise BaseRefused(f"{files.id} is a decoder; an encoder is needed")
    positions = "rotary" if kind in ROTARY else "absolute"
    if getattr(config, "position_embedding_type", None) not in (None, positions):
        raise BaseRefused(
            f"{files.id} has {config.position_embedding_type} positions, which transformers does "
            f"not compute for {kind}"
        )
    if any(rope in GROWING_ROPES for rope in _rope_types(config)):
        raise BaseRefused(
            f"{files.id} has rotary positions that change with the longest text of a batch "
            f"({', '.join(GROWING_ROPES)}): a text's answer would depend on its neighbours"
        )
    if getattr(config, "quantization_config", None):
        raise BaseRefused(f"{files.id} is quantised; its plain weights are needed")
    return config


def _rope_types(config: Any) -> list[str | None]:
    """Of all layers' rotary positions; ModernBERT has them by kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return [kind.get("rope_type") for kind in kinds]


def load_model(files: BaseFiles, config: Any, dtype: torch.dtype) -> Any:
    """transformers' own model with our attention; without its pooler where the files have none.

    Raises BaseRefused where the files can't be read, or lack weights.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    AttentionInterface.register(NAME, attention.as_placeholder)
    AttentionMaskInterface.register(NAME, lambda **_: None)  # runs of a batch say who sees whom
    try:
        model, report = AutoModel.from_pretrained(
            files.folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=NAME,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BaseRefused(
            f"{files.id} cannot be loaded: {first_line(error)} (weights must be safetensors; a "
            ".bin is a pickle and never opened)"
        ) from None
    missing = {str(k) for k in report["missing_keys"]} | {
        str(k[0]) for k in report["mismatched_keys"]
    }
    lost = sorted(k for k in missing if not k.startswith("pooler."))
    if lost:
        raise BaseRefused(
            f"{files.id} lacks {', '.join(lost[:5])}: it would be served with random weights"
        )
    if missing:
        model.pooler = None
    return model


def facts_of(model: nn.Module, config: Any) -> Facts:
    """Of a model that load_model gave."""
    heads = config.num_attention_heads
    return Facts(
        model_type=config.model_type,
        prefix=str(model.base_model_prefix),
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=config.vocab_size,
        padding=config.pad_token_id,
        positions=config.max_position_embeddings,
        takes_types=takes_types(model),
        classifier_pooling=getattr(config, "classifier_pooling", "cls"),
        classifier_activation=getattr(config, "classifier_activation", "gelu"),
        norm_eps=getattr(config, "norm_eps", 1e-5),
        architectures=config.architectures,
        id2label=config.id2label,
        problem_type=config.problem_type,
    )
