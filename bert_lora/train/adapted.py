"""PEFT's LoRA and a head of transformers on a base: which layers are adapted, which are new."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn

NUMBERED = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class HeadKind:
    """PEFT's task, and what transformers calls the model and its outputs' meaning."""

    peft_task: TaskType
    model: str
    problem: str | None = None


SEQUENCE = HeadKind(TaskType.SEQ_CLS, "AutoModelForSequenceClassification")
SEVERAL = HeadKind(TaskType.SEQ_CLS, SEQUENCE.model, "multi_label_classification")
AMOUNT = HeadKind(TaskType.SEQ_CLS, SEQUENCE.model, "regression")
TOKENS = HeadKind(TaskType.TOKEN_CLS, "AutoModelForTokenClassification")
NO_HEAD = HeadKind(TaskType.FEATURE_EXTRACTION, "AutoModel")


@dataclass(frozen=True)
class Sizes:
    """rank, alpha: LoRA's. layers: how many of the base's last layers are adapted; None: half."""

    rank: int = 8
    alpha: int = 16
    layers: int | None = None


def layers_of(body: nn.Module) -> tuple[nn.Module, str] | None:
    """(parent, name) of the list of the model's layers; None where they are none, as ALBERT's."""
    count = getattr(body.config, "num_hidden_layers", 0)
    for parent in body.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return parent, name
    return None


def adapted(
    plain: Any, body: nn.Module, base_id: str, kind: HeadKind, sizes: Sizes, cut: int, missing: Any
) -> PeftModel:
    """LoRA on every Linear from the cut on, and what stands behind the encoder trained whole."""
    own = (
        {path.split(".")[0] for path in missing}
        if kind is NO_HEAD
        else {path.removeprefix(f"{plain.base_model_prefix}.").split(".")[0] for path in missing}
    )
    inside = {id(m) for m in body.modules()}
    whole = [
        n
        for n, m in plain.named_children()
        if id(m) not in inside and any(True for _ in m.parameters())
    ]
    whole += [name for name, child in body.named_children() if name in own and kind is not NO_HEAD]
    targets = [
        name
        for name, module in body.named_modules()
        if isinstance(module, nn.Linear)
        and name.split(".")[0] not in whole
        and not (kind is NO_HEAD and name.startswith("pooler"))
        and (match := NUMBERED.search(name), match is None or int(match[1]) >= cut)[1]
    ]
    config = LoraConfig(
        task_type=kind.peft_task,
        r=sizes.rank,
        lora_alpha=sizes.alpha,
        target_modules=targets,
        modules_to_save=whole or None,
        base_model_name_or_path=base_id,  # not this machine's path
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(plain, config)
    model.peft_config["default"].base_model_name_or_path = base_id
    return model


def last_linear(model: PeftModel, plain: Any) -> nn.Linear:
    """The head's output layer, as it is trained: PEFT keeps a copy of it."""
    copies = [
        m
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear)
        and ".modules_to_save." in n
        and m.out_features == plain.config.num_labels
    ]
    return copies[-1]
