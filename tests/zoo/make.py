"""Adapters as one version of PEFT writes them, with its own answers.

    PYTHONPATH=folder/of/that/peft python tests/zoo/make.py OUT [NAME ...]

Into OUT go folders VERSION-ARCHITECTURE-KIND of adapter_config.json, adapter_model.safetensors and
oracle.json: {"ids", "task", "logits"}. PEFT 0.8 to 0.18 want a transformers of their time
(tests/zoo/README.md). Nothing of this server takes part.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

_spec = importlib.util.spec_from_file_location("base", Path(__file__).with_name("base.py"))
base = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(base)  # type: ignore[union-attr]

CLASSES = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
}
Q = {"distilbert": ["q_lin", "v_lin"]}


def kinds(arch: str) -> dict[str, Any]:
    """Name -> (task, a function that makes the config); a version that lacks it raises."""
    q = Q.get(arch, ["query", "value"])
    lora, heads = peft.LoraConfig, HEADS.get(arch, ["classifier"])
    few = {"r": 2, "lora_alpha": 5}
    return {
        "plain": ("SEQ_CLS", lambda: lora(**few, target_modules=q)),
        "bias-all": ("SEQ_CLS", lambda: lora(**few, target_modules=q, bias="all")),
        "bias-lora": ("SEQ_CLS", lambda: lora(**few, target_modules=q, bias="lora_only")),
        "words": ("TOKEN_CLS", lambda: lora(**few, target_modules=q)),
        "words-bias-all": ("TOKEN_CLS", lambda: lora(**few, target_modules=q, bias="all")),
        "rslora": ("SEQ_CLS", lambda: lora(**few, target_modules=q, use_rslora=True)),
        "dora": ("SEQ_CLS", lambda: lora(**few, target_modules=q, use_dora=True)),
        "dora-bias-all": ("SEQ_CLS", lambda: lora(**few, target_modules=q, use_dora=True, bias="all")),
        "lora-bias": ("SEQ_CLS", lambda: lora(**few, target_modules=q, lora_bias=True)),
        "all-linear": ("SEQ_CLS", lambda: lora(**few, target_modules="all-linear")),
        "embedding": ("SEQ_CLS", lambda: lora(**few, target_modules=[*q, "word_embeddings"])),
        "heads": ("SEQ_CLS", lambda: lora(**few, target_modules=q, modules_to_save=heads, bias="all")),
        "norms": ("SEQ_CLS", lambda: lora(**few, target_modules=q, modules_to_save=["LayerNorm"])),
        "tokens": ("SEQ_CLS", lambda: lora(**few, target_modules=q, trainable_token_indices=[7, 9])),
        "adalora": ("SEQ_CLS", lambda: adalora(q)),
        "ia3": ("SEQ_CLS", lambda: peft.IA3Config(target_modules=q, feedforward_modules=[])),
        "loha": ("SEQ_CLS", lambda: peft.LoHaConfig(r=2, alpha=5, target_modules=q)),
        "lokr": ("SEQ_CLS", lambda: peft.LoKrConfig(r=2, alpha=5, target_modules=q)),
        "vera": ("SEQ_CLS", lambda: peft.VeraConfig(r=4, target_modules=q)),
        "oft": ("SEQ_CLS", lambda: oft(q)),
        "fourierft": ("SEQ_CLS", lambda: peft.FourierFTConfig(n_frequency=20, target_modules=q)),
        "ln-tuning": ("SEQ_CLS", lambda: peft.LNTuningConfig(target_modules=["LayerNorm"])),
    }  # fmt: skip


HEADS = {"distilbert": ["pre_classifier", "classifier"], "bert": ["classifier", "pooler"]}


def adalora(targets: list[str]) -> Any:
    return peft.AdaLoraConfig(
        init_r=3, target_r=2, lora_alpha=5, total_step=10, target_modules=targets
    )


def oft(targets: list[str]) -> Any:
    try:
        return peft.OFTConfig(r=0, oft_block_size=4, target_modules=targets)
    except TypeError:
        return peft.OFTConfig(r=4, target_modules=targets)


def make(arch: str, kind: str, out: Path) -> None:
    """One adapter, saved by PEFT, and PEFT's answer to base.IDS once it is loaded again."""
    task, config = kinds(arch)[kind]
    config = config()
    config.task_type = task
    if task == "SEQ_CLS" and arch == "distilbert" and not getattr(config, "modules_to_save", None):
        config.modules_to_save = ["pre_classifier"]
    tuned = peft.get_peft_model(model_of(arch, task), config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                base.set_by_name(name, parameter)
    if kind == "adalora":
        tuned.peft_config["default"].rank_pattern = None
    folder = out / f"{peft.__version__}-{arch}-{kind}"
    tuned.save_pretrained(folder, safe_serialization=True)
    tuned = peft.PeftModel.from_pretrained(model_of(arch, task), folder)
    write_oracle(tuned, task, folder)


def add_adapter(arch: str, out: Path) -> None:
    """As transformers' own add_adapter and save_pretrained write it: no task."""
    model = model_of(arch, "TOKEN_CLS")
    config = peft.LoraConfig(
        r=2, lora_alpha=5, target_modules=Q.get(arch, ["query", "value"]), modules_to_save=["classifier"]
    )  # fmt: skip
    model.add_adapter(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                base.set_by_name(name, parameter)
    folder = out / f"{peft.__version__}-{arch}-add-adapter"
    model.save_pretrained(folder, safe_serialization=True)
    write_oracle(model, "TOKEN_CLS", folder)


def model_of(arch: str, task: str) -> Any:
    config = base.CONFIGS[arch]()
    config.num_labels = 3
    model = CLASSES[task].from_config(config)
    base.fill(model, f"{model.base_model_prefix}.")
    return model


def write_oracle(tuned: Any, task: str, folder: Path) -> None:
    with torch.no_grad():
        logits = tuned.eval()(input_ids=torch.tensor([base.IDS])).logits[0]
    said = {"ids": base.IDS, "task": task, "logits": logits.tolist()}
    (folder / "oracle.json").write_text(json.dumps(said) + "\n")
    (folder / "README.md").unlink(missing_ok=True)


def main(out: Path, names: list[str]) -> None:
    """Everything that this version can make, or the named ones ("roberta-bias-all")."""
    warnings.simplefilter("ignore")
    for arch in base.CONFIGS:
        for kind in [*kinds(arch), "add-adapter"]:
            if names and f"{arch}-{kind}" not in names:
                continue
            try:
                add_adapter(arch, out) if kind == "add-adapter" else make(arch, kind, out)
            except Exception as error:
                print(f"{peft.__version__} {arch}-{kind}: {type(error).__name__} {error!s:.150}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
