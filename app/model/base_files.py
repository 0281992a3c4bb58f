"""A base's files: where they are, and what its sentence-transformers files say about embeddings.

Knows folders, hub ids and JSON; loads no weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from app.adapters.sentence import Sentence, SentenceRefused, read_sentence
from app.model.embedded import MODEL_ID, embedded_base

# A * goes through folders, too: a base's own adapters come along (docs/tasks.md).
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*"]

DEFAULT = Sentence(pooling="mean", normalize=True)
HEAD_PREFIXES = ("classifier.", "pre_classifier.", "head.")


class BaseRefused(Exception):
    """A base that cannot be served right, with the reason."""


@dataclass(frozen=True)
class BaseFiles:
    """id: the name for clients. sentence: how it embeds; pooling and normalize are never None."""

    id: str
    folder: Path
    sentence: Sentence


def find_base(model: str | None, revision: str | None) -> BaseFiles:
    """The base's files, downloaded where they have to be.

    model: a folder, a hub id, which revision pins, or None: the embedded one.
    Raises BaseRefused, EmbeddedBaseMissing.
    """
    if model is None:
        return _read(MODEL_ID, embedded_base())
    folder = Path(model)
    if folder.is_dir():
        return _read(folder.resolve().name, folder)
    if model.startswith((".", "/", "~")):
        raise BaseRefused(f"the base's folder {model} does not exist")
    from huggingface_hub import snapshot_download  # it takes 0.1 s, where it is not needed

    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=HUB_FILES))
    except Exception as error:  # whatever the hub's client, and its client of HTTP, may raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BaseRefused(f"{model} is no folder, and the hub did not give it: {first}") from None
    return _read(model, folder)


def _read(model_id: str, folder: Path) -> BaseFiles:
    """sentence-transformers' modules.json and beside; without them mean pooling, normalised."""
    try:
        sentence = read_sentence(
            _json(folder / "modules.json"),
            _json(folder / "1_Pooling" / "config.json"),
            _json(folder / "sentence_bert_config.json"),
            _json(folder / "config_sentence_transformers.json"),
        )
    except SentenceRefused as error:
        raise BaseRefused(str(error)) from None
    return BaseFiles(model_id, folder, sentence.over(DEFAULT))


def _json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise BaseRefused(f"{path} is not JSON") from None


def head_tensors(folder: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors of a head behind the encoder, by name; the encoder has none of them.

    ModernBERT's own checkpoint has head.dense and head.norm, a fine-tuned base a whole classifier.
    """
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(HEAD_PREFIXES)]  # noqa: SIM118
            tensors |= {name: file.get_tensor(name) for name in names}
    return tensors
