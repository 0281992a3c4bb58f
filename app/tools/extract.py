"""`bert-lora extract`: a fully fine-tuned checkpoint of the same base -> an adapter in PEFT's
folder.

Each changed Linear and Embedding becomes the best low-rank update of its difference (Eckart-Young:
the largest singular values); LayerNorms, biases and the head, which are small, go along whole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from app.adapters.base import Base
from app.adapters.config.labels import task_of_class
from app.adapters.files import CONFIG, MODEL_CONFIG, WEIGHTS
from app.adapters.heads import POOLERS
from app.adapters.layouts import PEFT_PREFIX
from app.adapters.peft_folder import TASK_TYPES
from app.catalog.stored_version import StoredVersion
from app.model.base_files import BaseFiles, head_tensors
from app.model.encoder import Encoder
from app.model.load_encoder import load_encoder
from app.model.sequence import Sequence, Want
from app.tools.workbench import Workbench, workbench

KEPT = (
    "architectures", "model_type", "id2label", "label2id", "problem_type", "vocab_size",
    "hidden_size", "num_hidden_layers", "classifier_pooling",
)  # fmt: skip


class CannotExtract(Exception):
    """The checkpoint is not one of this base, with the reason."""


@dataclass(eq=False)
class _Extracted:
    """What goes into the folder. remainders: by module, the share of its difference that is not
    captured.
    """

    prefix: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)
    remainders: dict[str, float] = field(default_factory=dict)

    def add(self, path: str, **parts: Tensor) -> None:
        """parts: with __ for the dots of PEFT's keys."""
        for part, tensor in parts.items():
            name = f"{PEFT_PREFIX}{self.prefix}{path}.{part.replace('__', '.')}"
            self.tensors[name] = tensor.contiguous().clone()


def extract(checkpoint: Path, model: str | None, rank: int, output: Path) -> str:
    """Write the adapter's folder; returns what to print.

    Raises CannotExtract, BaseRefused; AdapterRejected where the result could not be served.
    """
    config_path = checkpoint / MODEL_CONFIG
    if not config_path.is_file():
        raise CannotExtract(f"{checkpoint} has no {MODEL_CONFIG}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CannotExtract(f"{output} is there and not empty: name a new folder")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError:
        raise CannotExtract(f"{config_path} is not JSON") from None
    with workbench(model) as bench:
        base = bench.encoder.base
        files = BaseFiles(str(checkpoint), checkpoint, bench.encoder.files.sentence)
        tuned = load_encoder(files, torch.device("cpu"), torch.float32)
        _check_same(base, tuned.base, checkpoint)
        task = _task(config)
        adapter = _Extracted(f"{base.prefix}." if task else "")
        _encoder(base, tuned.base, rank, adapter)
        if not adapter.targets:
            raise CannotExtract(
                f"no Linear and no Embedding of {checkpoint} differs from the base's: a LoRA "
                "adapter needs one (a head, biases or norms alone are PEFT's modules_to_save)"
            )
        if task:
            _head(head_tensors(checkpoint), adapter)
            _own_pooler(base, tuned.base, adapter)
        _write(output, adapter, config, bench.encoder.files, task, rank)
        version = bench.load(output)
        moved = _output_error(tuned, bench, version)
    report = version.report
    lines = [f"{path:60} {100 * share:6.2f} %" for path, share in adapter.remainders.items()]
    return "\n".join(
        [
            f"share of each difference that rank {rank} leaves out:",
            *lines,
            f"{output}: {report.bytes:,} bytes, {len(adapter.tensors)} tensors, task {report.task}",
            f"the output differs from the checkpoint's by {100 * moved:.2f} % on the probe text "
            f"(the adapter moves it by {100 * report.delta.relative:.2f} %)",
        ]
    )


def _check_same(base: Base, tuned: Base, checkpoint: Path) -> None:
    mine, theirs = ({n: tuple(t.shape) for n, t in b.tensors.items()} for b in (base, tuned))
    pooler = POOLERS.get(base.model_type, "pooler.dense")
    wrong = [
        f"{name} is {theirs.get(name)}, the base's {shape}"
        for name, shape in mine.items()
        if theirs.get(name) != shape and not name.startswith(pooler)
    ]
    if base.model_type != tuned.model_type or wrong:
        raise CannotExtract(
            f"{checkpoint} is a {tuned.described}, no checkpoint of this base, a {base.described}"
            + (f": {'; '.join(wrong[:3])}" if wrong else "")
        )


def _task(config: dict[str, Any]) -> str | None:
    return task_of_class((config.get("architectures") or [""])[0])


def _encoder(base: Base, tuned: Base, rank: int, adapter: _Extracted) -> None:
    """Every difference of the encoder. Biases go along all or none, as PEFT's bias=all has them."""
    biases = any(_differs(base, tuned, f"{path}.bias") for path in base.linears)
    for path in base.linears:
        changed = _differs(base, tuned, f"{path}.weight")
        if changed:
            A, B = _low_rank(base, tuned, path, rank, adapter)
            adapter.add(path, lora_A__weight=A, lora_B__weight=B)
        if biases and f"{path}.bias" in tuned.tensors:
            leaf = "base_layer__bias" if changed else "bias"
            adapter.add(path, **{leaf: tuned.tensors[f"{path}.bias"]})
    for path in base.norms:
        names = [n for n in (f"{path}.weight", f"{path}.bias") if n in base.tensors]
        if biases or any(_differs(base, tuned, name) for name in names):
            adapter.add(path, **{n.rsplit(".", 1)[1]: tuned.tensors[n] for n in names})
            adapter.whole.append(adapter.prefix + path)
    for path in base.embeddings:
        if _differs(base, tuned, f"{path}.weight"):
            A, B = _low_rank(base, tuned, path, rank, adapter)
            adapter.add(path, lora_embedding_A=B.T, lora_embedding_B=A.T)


def _differs(base: Base, tuned: Base, name: str) -> bool:
    mine, theirs = base.tensors.get(name), tuned.tensors.get(name)
    return mine is not None and theirs is not None and not torch.equal(mine, theirs)


def _low_rank(
    base: Base, tuned: Base, path: str, rank: int, adapter: _Extracted
) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] of the difference, the singular values split between the two."""
    delta = (tuned.weight(path).detach() - base.weight(path).detach()).double()
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    r = min(rank, len(S))
    adapter.targets[adapter.prefix + path] = r
    adapter.remainders[path] = float(S[r:].norm() / S.norm())
    root = S[:r].sqrt()
    return (root[:, None] * Vh[:r]).float(), (U[:, :r] * root).float()


def _head(head: dict[str, Tensor], adapter: _Extracted) -> None:
    """The checkpoint's head, whole; its modules are named as PEFT names them, by the outermost."""
    if not head:
        raise CannotExtract("the checkpoint is named a classifier, and holds no head")
    adapter.tensors |= {f"{PEFT_PREFIX}{name}": tensor.float() for name, tensor in head.items()}
    adapter.whole += sorted({name.split(".", 1)[0] for name in head})


def _own_pooler(base: Base, tuned: Base, adapter: _Extracted) -> None:
    """The checkpoint's pooler, whole, where its head may read it and the base has none."""
    path = POOLERS.get(base.model_type)
    if path is not None and path in tuned.linears and path not in base.linears:
        adapter.add(path, weight=tuned.weight(path), bias=tuned.tensors[f"{path}.bias"])
        adapter.whole.append(f"{adapter.prefix}pooler")


def _output_error(tuned: Encoder, bench: Workbench, version: StoredVersion) -> float:
    """||adapter's - checkpoint's|| / ||checkpoint's||, of the mean of the last hidden state."""
    ids, want = bench.loader.probe_ids, Want("embedding", normalize=False)
    types = [0] * len(ids)
    mine = bench.encoder.run([Sequence(ids, types, want, version)])[0]
    theirs = tuned.run([Sequence(ids, types, want, tuned.version)])[0]
    return float((mine - theirs).norm() / theirs.norm())


def _write(
    output: Path,
    adapter: _Extracted,
    config: dict[str, Any],
    base: BaseFiles,
    task: str | None,
    rank: int,
) -> None:
    ranks = {path: r for path, r in adapter.targets.items() if r != rank}
    biases = any(name.endswith("base_layer.bias") for name in adapter.tensors)
    peft = {
        "peft_type": "LORA",
        "task_type": TASK_TYPES[task or "embed"],
        "base_model_name_or_path": base.id,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "bias": "all" if biases else "none",
        "target_modules": sorted(adapter.targets),
        "modules_to_save": adapter.whole or None,
        "inference_mode": True,
    }
    output.mkdir(parents=True, exist_ok=True)
    save_file(adapter.tensors, output / WEIGHTS, metadata={"format": "pt"})
    (output / CONFIG).write_text(json.dumps(peft, indent=2))
    kept = {name: config[name] for name in KEPT if name in config}
    (output / MODEL_CONFIG).write_text(json.dumps(kept, indent=2))
