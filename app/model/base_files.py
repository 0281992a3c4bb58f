"""A base's files: where they are, and what its sentence-transformers files say about embeddings.

Knows folders, hub ids and JSON; loads no weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from app.adapters.adapter import Pooling
from app.model.embedded import MODEL_ID, embedded_base

HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*"]
POOLING_MODES: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
POOLING_NAMES: dict[str, Pooling] = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "lasttoken": "last",
}


class BaseRefused(Exception):
    """A base that cannot be served right, with the reason."""


@dataclass(frozen=True)
class BaseFiles:
    """id: how clients name the base. max_length in tokens, special ones included; None: unsaid."""

    id: str
    folder: Path
    pooling: Pooling
    normalize: bool
    max_length: int | None
    prompts: dict[str, str]
    default_prompt: str | None


def find_base(model: str | None, revision: str | None) -> BaseFiles:
    """model: a folder, a hub id (downloaded with a progress bar, pinned by revision) or None: the
    embedded one.

    Raises BaseRefused, EmbeddedBaseMissing.
    """
    if model is None:
        return _read(MODEL_ID, embedded_base())
    folder = Path(model)
    if folder.is_dir():
        return _read(folder.resolve().name, folder)
    if model.startswith((".", "/", "~")):
        raise BaseRefused(f"the base's folder {model} does not exist")
    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise BaseRefused(f"{model} is no folder, and the hub did not give it: {first}") from None
    return _read(model, folder)


def _read(model_id: str, folder: Path) -> BaseFiles:
    """sentence-transformers' modules.json and beside; without them mean pooling, normalised."""
    modules = _json(folder / "modules.json") or []
    kinds = [str(m.get("type", "")).rsplit(".", 1)[-1] for m in modules]
    pooling_folder = next((m.get("path") for m in modules if "Pooling" in m.get("type", "")), None)
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise BaseRefused(f"its modules.json has {', '.join(sorted(unknown))}, which is not served")
    sentence = _json(folder / "sentence_bert_config.json") or {}
    prompts = _json(folder / "config_sentence_transformers.json") or {}
    return BaseFiles(
        model_id,
        folder,
        _pooling(_json(folder / pooling_folder / "config.json") or {})
        if pooling_folder
        else "mean",
        "Normalize" in kinds if kinds else True,
        sentence.get("max_seq_length"),
        {str(k): str(v) for k, v in (prompts.get("prompts") or {}).items()},
        prompts.get("default_prompt_name"),
    )


def _pooling(config: dict[str, Any]) -> Pooling:
    if config.get("include_prompt") is False:
        raise BaseRefused("its pooling leaves the prompt's tokens out, which is not served")
    if isinstance(config.get("pooling_mode"), str):
        modes = [POOLING_NAMES.get(config["pooling_mode"])]
    else:
        on = [k for k, v in config.items() if k.startswith("pooling_mode_") and v is True]
        modes = [POOLING_MODES.get(k) for k in on] or ["mean"]
    if len(modes) != 1 or modes[0] is None:
        raise BaseRefused(f"its pooling ({config}) is not one of cls, mean, max, last")
    return modes[0]


def _json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise BaseRefused(f"{path} is not JSON") from None
