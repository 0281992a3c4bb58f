"""The zoo's bases: tiny models whose weights are a formula of their names, the same in every
library's version.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 80, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 24, "pad_token_id": 0,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "bert": lambda: transformers.BertConfig(**SIZES),
    "roberta": lambda: transformers.RobertaConfig(**SIZES, type_vocab_size=1),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**SIZES, type_vocab_size=1),
    "electra": lambda: transformers.ElectraConfig(**SIZES, embedding_size=8),
    "albert": lambda: transformers.AlbertConfig(**SIZES, embedding_size=8),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=80, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=24
    ),
}
IDS = [2, 7, 8, 9, 30, 11, 3]


def fill(model: Any, prefix: str = "") -> None:
    """Every parameter from its name, counted without the model's prefix."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            set_by_name(name.removeprefix(prefix), parameter)


def set_by_name(name: str, parameter: torch.Tensor, scale: float = 0.3) -> None:
    """sin(n * n * 0.37 + the name's checksum): as good as random, and nobody's generator."""
    n = torch.arange(parameter.numel(), dtype=torch.float64)
    values = torch.sin(n * n * 0.37 + zlib.crc32(name.encode()) % 1000) * scale
    if name.endswith("LayerNorm.weight") or "layer_norm.weight" in name:
        values = values + 1
    parameter.copy_(values.reshape(parameter.shape).to(parameter.dtype))


def save_base(arch: str, folder: Path) -> Path:
    """The encoder as a base to be served, without its tokenizer."""
    model = transformers.AutoModel.from_config(CONFIGS[arch]())
    fill(model)
    model.save_pretrained(folder)
    return folder
