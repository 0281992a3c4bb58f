"""What put takes -> one file on this disk that the server reads: bare safetensors, a tar or a zip.

Imports torch and safetensors for models alone, which brought them.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.adapters.files import CONFIG, MODEL_CONFIG, WEIGHTS
from app.adapters.receiving.copying import copy_adapter
from app.adapters.refusals import AdapterRejected
from bert_lora.errors import Unreadable

OF_HEADS = ("id2label", "label2id", "problem_type", "architectures")  # of a model's config


@contextmanager
def upload_file(source: Any) -> Iterator[Path]:
    """The file to send; what had to be made for it is removed again.

    source: a folder, a file, a PEFT model, or a module with LoRA tensors. Blocks. Raises
    Unreadable.
    """
    if isinstance(source, str | Path) and Path(source).is_file():
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as made:
        yield _made(source, Path(made))


def _made(source: Any, made: Path) -> Path:
    if isinstance(source, str | Path):
        folder = Path(source)
        if not folder.is_dir():
            raise Unreadable(f"{folder} does not exist")
        return _packed(folder, made)
    if hasattr(source, "peft_config") and hasattr(source, "save_pretrained"):
        return _packed(_saved_by_peft(source, made), made)
    if hasattr(source, "state_dict"):
        return _lora_tensors(source, made)
    raise Unreadable(
        f"a {type(source).__name__} is neither a path, a PEFT model nor a torch module"
    )


def _packed(folder: Path, made: Path) -> Path:
    """A tar of the folder's adapter files alone."""
    try:
        copy_adapter(folder, made / "adapter")
    except AdapterRejected as error:
        raise Unreadable(f"{folder}: {error}") from None
    packed = made / "adapter.tar"
    with tarfile.open(packed, "w") as tar:
        tar.add(made / "adapter", ".")
    return packed


def _saved_by_peft(model: Any, made: Path) -> Path:
    """The active adapter as PEFT saves it, and what the model's config says of its head."""
    active = model.active_adapter
    model.save_pretrained(made / "peft", selected_adapters=[active])
    folder = made / "peft" if active == "default" else made / "peft" / active
    config = getattr(model.get_base_model(), "config", None)
    told = {} if config is None else config.to_dict()
    if told.get("id2label") and _has_head(folder):
        kept = {name: told[name] for name in OF_HEADS if told.get(name) is not None}
        (folder / MODEL_CONFIG).write_text(json.dumps(kept), encoding="utf-8")
    return folder


def _has_head(folder: Path) -> bool:
    """Every config of transformers names two labels; only a task makes them true."""
    task = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("task_type")
    return task in ("SEQ_CLS", "TOKEN_CLS")


def _lora_tensors(module: Any, made: Path) -> Path:
    """What was trained, as safetensors. A frozen base stays here."""
    from safetensors.torch import save_file

    tensors = _trained(module)
    if not tensors:
        raise Unreadable(
            f"the {type(module).__name__} has no LoRA tensors: no name in its state_dict() has "
            "'lora' in it"
        )
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(copies, made / WEIGHTS)
    return made / WEIGHTS


def _trained(module: Any) -> Mapping[str, Any]:
    """Its LoRA tensors; and where the rest is frozen, all others that were trained (a head)."""
    tensors = module.state_dict()
    lora = {name for name in tensors if "lora" in name.lower()}
    rest = {name: value for name, value in module.named_parameters() if name not in lora}
    if any(not value.requires_grad for value in rest.values()):
        lora |= {name for name, value in rest.items() if value.requires_grad}
    return {name: tensors[name] for name in tensors if name in lora} if lora else {}
