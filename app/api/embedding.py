"""What a request asks of an embedding -> the model's Want and the prompt before each text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.adapters.config.sentence import Pooling, Sentence
from app.api.choosing import Choice, Chosen
from app.api.errors import invalid
from app.api.serving import Serving
from app.catalog.golden import embedding_want
from app.catalog.load import embedding_space
from app.engine.tokenizer import Input
from app.model.sequence import Want


@dataclass(frozen=True)
class Wish:
    """None: the adapter's, or else the base's own files'."""

    normalize: bool | None = None
    pooling: Pooling | None = None
    dimensions: int | None = None
    prompt: str | None = None
    prompt_name: str | None = None


def sentence_of(serving: Serving, chosen: Chosen) -> Sentence:
    """How the chosen adapter, or the base, makes vectors."""
    adapter = chosen.version.adapter if chosen.version else None
    return serving.engine.encoder.sentence(adapter)


def wants(serving: Serving, wish: Wish, choice: Choice) -> Callable[[Chosen], Want]:
    """The request's wish over what each adapter says; checked for every one chosen. Raises Refusal."""
    base = serving.engine.encoder.base
    if wish.dimensions is not None and wish.dimensions > base.hidden:
        raise invalid("dimensions", f"is over the base's {base.hidden}")
    if wish.pooling == "pooler" and not base.has_pooler:
        raise invalid("pooling", "is pooler, and this base has none")
    asked = Sentence(wish.pooling, wish.normalize, truncate_dim=wish.dimensions)
    found: dict[str, Want] = {}
    for chosen in choice.distinct:
        said = sentence_of(serving, chosen)
        if wish.dimensions and said.dimensions and wish.dimensions not in said.dimensions:
            lengths = ", ".join(map(str, sorted(said.dimensions)))
            raise invalid(
                "dimensions",
                f"is {wish.dimensions}; {chosen.name} was trained to be cut to {lengths}",
            )
        found[chosen.stamp] = embedding_want(asked.over(said))
    return lambda chosen: (
        found.get(chosen.stamp) or embedding_want(asked.over(sentence_of(serving, chosen)))
    )


def prompts(
    serving: Serving, wish: Wish, items: Sequence[Input], choice: Choice
) -> Callable[[Chosen], str]:
    """The text to put before each input, for every adapter chosen.

    Raises Refusal for an unknown name, or one asked for beside token ids.
    """
    if wish.prompt is not None and wish.prompt_name is not None:
        raise invalid("prompt", "and prompt_name are both given: send one of them")
    asked = "prompt" if wish.prompt is not None else "prompt_name"
    has_ids = any(isinstance(item, list) for item in items)
    if has_ids and (wish.prompt is not None or wish.prompt_name is not None):
        raise invalid(asked, "cannot be put before token ids")
    found = {chosen.stamp: _prompt(serving, wish, chosen) for chosen in choice.distinct}
    return lambda chosen: (
        found[chosen.stamp] if chosen.stamp in found else _prompt(serving, wish, chosen)
    )


def _prompt(serving: Serving, wish: Wish, chosen: Chosen) -> str:
    if wish.prompt is not None:
        return wish.prompt
    said = sentence_of(serving, chosen)
    known, name = said.prompts or {}, wish.prompt_name or said.default_prompt
    if name is None:
        return ""
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise invalid("prompt_name", f"is {name!r}; {chosen.name} has {names}")
    return known[name]


def spaces(serving: Serving, wish: Wish, choice: Choice) -> list[str]:
    """In which space each chosen adapter's vectors lie. A pooling that was asked for is a space apart."""
    base = serving.engine.encoder.digest
    found = []
    for chosen in choice.distinct:
        space = embedding_space(base, chosen.digest if chosen.version else None)
        apart = wish.pooling not in (None, sentence_of(serving, chosen).pooling)
        found.append(f"{space};pooling={wish.pooling}" if apart else space)
    return found
