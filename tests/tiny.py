"""Random models of every served architecture, a few layers small, with a tokenizer beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    GteConfig,
    JinaEmbeddingsV3Config,
    ModernBertConfig,
    NomicBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
    XLMRobertaXLConfig,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
    *LETTERS, *(f"##{c}" for c in LETTERS), *"0123456789.,!?-'",
    "the", "card", "money", "film", "good", "bad", "love", "lost", "how", "where", "is", "my",
]  # fmt: skip
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
CONFIGS: dict[str, Any] = {
    "bert": lambda: BertConfig(**SIZES),
    "roberta": lambda: RobertaConfig(**SIZES, type_vocab_size=1),
    "xlm-roberta": lambda: XLMRobertaConfig(**SIZES, type_vocab_size=1),
    "camembert": lambda: CamembertConfig(**SIZES, type_vocab_size=1),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=len(WORDS), dim=32, n_layers=2, n_heads=4, hidden_dim=64,
        max_position_embeddings=80, pad_token_id=0,
    ),
    "electra": lambda: ElectraConfig(**SIZES, embedding_size=16),
    "albert": lambda: AlbertConfig(**SIZES, embedding_size=16),
    "modernbert": lambda: ModernBertConfig(
        **SIZES, local_attention=8, global_attn_every_n_layers=2,
        cls_token_id=2, sep_token_id=3, reference_compile=False,
    ),
    "jina_embeddings_v3": lambda: JinaEmbeddingsV3Config(**SIZES, type_vocab_size=1),
    "nomic_bert": lambda: NomicBertConfig(**SIZES),
    "gte": lambda: GteConfig(**SIZES),
    "xlm-roberta-xl": lambda: XLMRobertaXLConfig(**SIZES, type_vocab_size=1),
}  # fmt: skip


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece over single letters and a few words: any lower-case text has tokens."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = Lowercase()
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def save_tiny_base(kind: str, folder: Path, seed: int = 0, **config: Any) -> Path:
    """A random model, its weights widened so that its outputs differ well between texts."""
    torch.manual_seed(seed)
    made = CONFIGS[kind]()
    for name, value in config.items():
        setattr(made, name, value)
    model = AutoModel.from_config(made)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
