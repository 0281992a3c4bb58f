"""What a request asks of an embedding -> the model's Want and the prompt before each text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.adapters.adapter import Pooling
from app.api.choosing import Chosen
from app.api.errors import invalid
from app.api.serving import Serving
from app.engine.tokenizer import Input
from app.model.batch import Want


@dataclass(frozen=True)
class Wish:
    """None: the adapter's, or else the base's own files'."""

    normalize: bool | None = None
    pooling: Pooling | None = None
    dimensions: int | None = None
    prompt: str | None = None
    prompt_name: str | None = None


def embedding_want(serving: Serving, wish: Wish) -> Callable[[Chosen], Want]:
    """The request's wish, then the adapter's, then the base's files'. Raises Refusal."""
    encoder = serving.engine.encoder
    if wish.dimensions is not None and wish.dimensions > encoder.shape.hidden:
        raise invalid("dimensions", f"is over the base's {encoder.shape.hidden}")
    if wish.pooling == "pooler" and not encoder.shape.has_pooler:
        raise invalid("pooling", "is pooler, and this base has none")

    def want(chosen: Chosen) -> Want:
        adapter = chosen.version.adapter if chosen.version else None
        pooling = wish.pooling or (adapter and adapter.pooling) or encoder.files.pooling
        said = (wish.normalize, adapter.normalize if adapter else None, encoder.files.normalize)
        normalize = next(n for n in said if n is not None)
        return Want("embedding", pooling, normalize, wish.dimensions)

    return want


def prompt_of(serving: Serving, wish: Wish, items: Sequence[Input]) -> str:
    """The text to put before each input. Raises Refusal for an unknown name, or beside ids."""
    files = serving.engine.encoder.files
    if wish.prompt is not None and wish.prompt_name is not None:
        raise invalid("prompt", "and prompt_name are both given: send one of them")
    asked = "prompt" if wish.prompt is not None else "prompt_name"
    has_ids = any(isinstance(item, list) for item in items)
    if has_ids and (wish.prompt is not None or wish.prompt_name is not None):
        raise invalid(asked, "cannot be put before token ids")
    if wish.prompt is not None:
        return wish.prompt
    name = wish.prompt_name or files.default_prompt
    if name is None:
        return ""
    if name not in files.prompts:
        names = ", ".join(sorted(files.prompts)) or "none"
        raise invalid("prompt_name", f"is {name!r}; this base has {names}")
    return files.prompts[name]
