"""Adapters of every kind that PEFT can save, made and saved by PEFT, and PEFT's own answers.

Each entry of KINDS makes one config for an architecture's module names. The weights are random, so
that every tensor counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    FourierFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.lora.config import BdLoraConfig, KasaConfig
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

MODELS: dict[str | None, Any] = {
    None: AutoModel,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
}


@dataclass(frozen=True)
class Names:
    """An architecture's module names. q, v: read the hidden state; up: to the wider layer; down:
    back.
    """

    q: str
    v: str
    up: str
    down: str
    norm: str
    words: str
    positions: str | None
    first_layer: str
    head: tuple[str, ...] = ("classifier",)


BERT = Names(
    "query", "value", "intermediate.dense", "output.dense", "LayerNorm", "word_embeddings",
    "position_embeddings", "layer.0",
)  # fmt: skip
NAMES: dict[str, Names] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), BERT),
    "distilbert": Names(
        "q_lin", "v_lin", "lin1", "lin2", "sa_layer_norm", "word_embeddings", "position_embeddings",
        "layer.0", ("pre_classifier", "classifier"),
    ),
    "albert": Names(
        "query", "value", "ffn", "ffn_output", "full_layer_layer_norm", "word_embeddings",
        "position_embeddings", "albert_layer_groups.0",
    ),
    "modernbert": Names(
        "Wqkv", "Wo", "Wi", "mlp.Wo", "mlp_norm", "tok_embeddings", None, "layers.0",
        ("head", "classifier"),
    ),
    "jina_embeddings_v3": Names(
        "q_proj", "v_proj", "fc1", "fc2", "post_mlp_layernorm", "word_embeddings", None, "layers.0",
    ),
    **dict.fromkeys(("nomic_bert", "gte"), Names(
        "q_proj", "v_proj", "gate_proj", "down_proj", "post_mlp_layernorm", "word_embeddings", None,
        "layers.0", ("pooler", "classifier"),
    )),
    "xlm-roberta-xl": BERT,
}  # fmt: skip

Make = Callable[[Names], Any]
KINDS: dict[str, Make] = {
    "plain": lambda n: LoraConfig(r=4, target_modules=[n.q, n.v]),
    "all-linear": lambda n: LoraConfig(r=2, lora_alpha=3, target_modules="all-linear"),
    "regex": lambda n: LoraConfig(r=4, target_modules=rf".*\.({n.q}|{n.down.replace('.', '[.]')})"),
    "rslora": lambda n: LoraConfig(r=4, use_rslora=True, target_modules=[n.q, n.up]),
    "patterns": lambda n: LoraConfig(
        r=4, lora_alpha=8, target_modules=[n.q, n.v], rank_pattern={n.q: 2, rf".*\.{n.v}": 3},
        alpha_pattern={rf"{n.first_layer.split('.')[0]}\.\d+.*{n.q}": 32},
    ),
    "dora": lambda n: LoraConfig(r=4, use_dora=True, target_modules=[n.q, n.down]),
    "dora, rslora, patterns": lambda n: LoraConfig(
        r=4, use_dora=True, use_rslora=True, target_modules=[n.q, n.v], rank_pattern={n.v: 6}
    ),
    "embedding": lambda n: LoraConfig(r=4, target_modules=[n.words, n.q]),
    "embedding, dora": lambda n: LoraConfig(
        r=4, use_dora=True, target_modules=[n.words, *([n.positions] if n.positions else []), n.q]
    ),
    "lora_bias": lambda n: LoraConfig(r=4, lora_bias=True, target_modules=[n.q, n.down]),
    "bias lora_only": lambda n: LoraConfig(r=4, bias="lora_only", target_modules=[n.q, n.down]),
    "bias all": lambda n: LoraConfig(r=4, bias="all", target_modules=[n.q, n.v]),
    "bias all, dora": lambda n: LoraConfig(
        r=4, bias="all", use_dora=True, target_modules=[n.q, n.v]
    ),
    "norms whole": lambda n: LoraConfig(r=4, target_modules=[n.q], modules_to_save=[n.norm]),
    "words whole": lambda n: LoraConfig(r=4, target_modules=[n.q], modules_to_save=[n.words]),
    "a linear whole": lambda n: LoraConfig(r=4, target_modules=[n.q], modules_to_save=[n.up]),
    "tokens": lambda n: LoraConfig(
        r=4, target_modules=[n.q], trainable_token_indices=[2, 5, 11, 30, 78]
    ),
    "tokens by name": lambda n: LoraConfig(
        r=4, target_modules=[n.q], trainable_token_indices={n.words: [7, 2, 20]}
    ),
    "one layer": lambda n: LoraConfig(r=4, target_modules=[n.q, n.v], layers_to_transform=[1]),
    "layers by pattern": lambda n: LoraConfig(
        r=4, target_modules=[n.q], layers_to_transform=0, layers_pattern=n.first_layer.split(".")[0]
    ),
    "excluded": lambda n: LoraConfig(
        r=4, target_modules=[n.q, n.v], exclude_modules=rf".*{n.first_layer.replace('.', '[.]')}.*{n.v}"
    ),
    "fan_in_fan_out": lambda n: LoraConfig(r=4, fan_in_fan_out=True, target_modules=[n.q]),
    "pissa": lambda n: LoraConfig(r=4, init_lora_weights="pissa", target_modules=[n.q, n.up]),
    "pissa, dora": lambda n: LoraConfig(
        r=4, init_lora_weights="pissa", use_dora=True, target_modules=[n.q, n.up]
    ),
    "olora": lambda n: LoraConfig(r=4, init_lora_weights="olora", target_modules=[n.q, n.down]),
    "eva": lambda n: LoraConfig(r=4, init_lora_weights="eva", target_modules=[n.q]),
    "orthogonal": lambda n: LoraConfig(r=4, init_lora_weights="orthogonal", target_modules=[n.q]),
    "gaussian": lambda n: LoraConfig(r=4, init_lora_weights="gaussian", target_modules=[n.q]),
    "kasa": lambda n: LoraConfig(r=4, kasa_config=KasaConfig(), target_modules=[n.q, n.up]),
    "bd-lora": lambda n: LoraConfig(
        r=4, target_modules=[n.q, n.v],
        use_bdlora=BdLoraConfig(target_modules_bd_a=[n.q], target_modules_bd_b=[n.v], nblocks=2),
    ),
    "adalora": lambda n: AdaLoraConfig(
        init_r=6, target_r=4, lora_alpha=5, total_step=10, target_modules=[n.q, n.up]
    ),
    "loha": lambda n: LoHaConfig(r=2, alpha=3, target_modules=[n.q, n.down]),
    "loha, large": lambda n: LoHaConfig(r=8, alpha=3, target_modules=[n.q]),
    "lokr": lambda n: LoKrConfig(r=2, alpha=3, target_modules=[n.q, n.up]),
    "lokr, both": lambda n: LoKrConfig(
        r=1, alpha=3, decompose_both=True, target_modules=[n.q, n.up]
    ),
    "ia3": lambda n: IA3Config(target_modules=[n.v, n.down], feedforward_modules=[n.down]),
    "vera": lambda n: VeraConfig(r=8, target_modules=[n.v, n.up]),
    "vera, not saved": lambda n: VeraConfig(
        r=8, save_projection=False, projection_prng_key=7, target_modules=[n.v, n.up]
    ),
    "fourierft": lambda n: FourierFTConfig(n_frequency=50, target_modules=[n.q, n.down]),
    "oft": lambda n: OFTConfig(oft_block_size=8, target_modules=[n.q, n.down]),
    "oft, shared": lambda n: OFTConfig(
        r=4, oft_block_size=0, block_share=True, use_cayley_neumann=False, target_modules=[n.q]
    ),
    "oft, constrained": lambda n: OFTConfig(
        oft_block_size=8, coft=True, eps=1.5, target_modules=[n.q]
    ),
    "ln tuning": lambda n: LNTuningConfig(target_modules=[n.norm]),
    "trainable tokens": lambda n: TrainableTokensConfig(
        token_indices=[2, 5, 30], target_modules=[n.words]
    ),
}  # fmt: skip


def make_kind(
    kind: str, arch: str, base: Path, folder: Path, *, seed: int = 0, task: str | None = None,
    labels: int = 3, config: Any = None, whole: tuple[str, ...] | None = None,
) -> Path:  # fmt: skip
    """A random adapter of this kind on this architecture, saved by PEFT.

    whole: the head's modules that it saves; None: all of them.
    """
    names = NAMES[arch]
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = config or KINDS[kind](names)
        config.task_type = task
        if task is not None and hasattr(config, "modules_to_save"):
            config.modules_to_save = [*(config.modules_to_save or []), *(whole or names.head)]
        tuned = get_peft_model(_model(base, task, labels), config)
        randomise(tuned)
        tuned.peft_config["default"].base_model_name_or_path = f"tiny/{arch}"
        tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


def randomise(tuned: Any) -> None:
    """Every trainable tensor gets values that move the output, and keep it finite."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if not parameter.requires_grad:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if "lora_A" in name or "embedding_A" in name or "lora_diag" in name:
                parameter.copy_(noise * 0.3)
            elif "magnitude" in name or "ia3_l" in name or "norm" in name.lower():
                parameter.add_(noise * 0.2)
            elif "hada" in name or "oft_R" in name:
                parameter.copy_(noise * 0.4)
            elif "fourierft" in name:
                parameter.copy_(noise * 0.5)
            else:
                parameter.add_(noise * 0.1)


def _model(base: Path, task: str | None, labels: int) -> Any:
    more = {"num_labels": labels} if task else {}
    return MODELS[task].from_pretrained(base, **more).eval()


@torch.inference_mode()
def peft_answers(
    base: Path, folder: Path, inputs: list[dict[str, Tensor]], *, task: str | None = None, labels: int = 3
) -> list[Tensor]:  # fmt: skip
    """PEFT's own answer for each input: the mean of the last hidden state, or the logits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = PeftModel.from_pretrained(_model(base, task, labels), folder).eval()
    found = [tuned(**i) for i in inputs]
    return [f.logits[0] if task else f.last_hidden_state[0].mean(0) for f in found]
