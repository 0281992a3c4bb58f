"""Texts -> vectors: what a call asks of them over what the adapter says over what the base says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from app.adapters.sentence import Pooling, Sentence
from app.engine.tokenizer import Input
from app.inference.caller import Caller
from app.inference.choose import Choice, Chosen, Selection, choose
from app.inference.errors import Invalid
from app.inference.read import Texts
from app.inference.run import Ran, run
from app.inference.runtime import Runtime
from app.model.sequence import Want, wanted_embedding
from app.model.version import embedding_space


@dataclass(frozen=True)
class EmbedWish:
    """How the vectors are wanted. None: as the adapter says, or else the base's own files.

    purposes: names that the prompt for what the vectors are for may have; where the adapter has
    none of them, its default prompt stands.
    """

    normalize: bool | None = None
    pooling: Pooling | None = None
    dimensions: int | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    purposes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Embedded:
    """ran.lines: vectors [H or dimensions]. spaces: of each distinct adapter, in order."""

    ran: Ran
    spaces: list[str]


async def embed(
    runtime: Runtime,
    caller: Caller,
    texts: Texts,
    selection: Selection | Choice = Selection(),  # noqa: B008 - frozen
    wish: EmbedWish = EmbedWish(),
) -> Embedded:
    """Vectors, each input through the adapter that was chosen for it.

    Raises Invalid for a wish that an adapter cannot meet; and what choose and run raise.
    """
    choice = await choose(runtime, caller, selection, len(texts.items))
    prompted = replace(texts, prompt=prompts_of(runtime, wish, texts.items, choice))
    ran = await run(runtime, caller, choice, prompted, _wants(runtime, wish, choice))
    return Embedded(ran, _spaces(runtime, wish, choice))


def _wants(runtime: Runtime, wish: EmbedWish, choice: Choice) -> Callable[[Chosen], Want]:
    """The wish over what each adapter says; checked for every one chosen. Raises Invalid."""
    base = runtime.engine.encoder.base
    if wish.dimensions is not None and wish.dimensions > base.hidden:
        raise Invalid("dimensions", f"is over the base's {base.hidden}")
    if wish.pooling == "pooler" and not base.has_pooler:
        raise Invalid("pooling", "is pooler, and this base has none")
    for chosen in choice.distinct:
        lengths = runtime.sentence(chosen.version).dimensions
        if wish.dimensions and lengths and wish.dimensions not in lengths:
            trained = ", ".join(map(str, sorted(lengths)))
            reason = f"is {wish.dimensions}; {chosen.name} was trained to be cut to {trained}"
            raise Invalid("dimensions", reason)
    own = Sentence(wish.pooling, wish.normalize, truncate_dim=wish.dimensions)

    def want(chosen: Chosen) -> Want:
        return wanted_embedding(own.over(runtime.sentence(chosen.version)))

    wants = {chosen.stamp: want(chosen) for chosen in choice.distinct}
    return lambda chosen: wants.get(chosen.stamp) or want(chosen)


def prompts_of(
    runtime: Runtime, wish: EmbedWish, items: Sequence[Input], choice: Choice
) -> Callable[[Chosen], str]:
    """What goes before each input, by adapter. Raises Invalid for an unknown name, or beside token
    ids.
    """
    if wish.prompt is not None and wish.prompt_name is not None:
        raise Invalid("prompt", "and prompt_name are both given: send one of them")
    wished = wish.prompt is not None or wish.prompt_name is not None
    if wished and any(isinstance(item, list) for item in items):
        name = "prompt" if wish.prompt is not None else "prompt_name"
        raise Invalid(name, "cannot be put before token ids")
    prompts = {chosen.stamp: _prompt(runtime, wish, chosen) for chosen in choice.distinct}
    return lambda chosen: (
        prompts[chosen.stamp] if chosen.stamp in prompts else _prompt(runtime, wish, chosen)
    )


def _prompt(runtime: Runtime, wish: EmbedWish, chosen: Chosen) -> str:
    if wish.prompt is not None:
        return wish.prompt
    sentence = runtime.sentence(chosen.version)
    prompts = sentence.prompts or {}
    purpose = next((name for name in wish.purposes if name in prompts), None)
    name = wish.prompt_name or purpose or sentence.default_prompt
    if name is None:
        return ""
    if name not in prompts:
        names = ", ".join(sorted(prompts)) or "none"
        raise Invalid("prompt_name", f"is {name!r}; {chosen.name} has {names}")
    return prompts[name]


def _spaces(runtime: Runtime, wish: EmbedWish, choice: Choice) -> list[str]:
    """In which space each adapter's vectors lie. A pooling that was wished for is a space apart."""
    base, spaces = runtime.engine.base, []
    for chosen in choice.distinct:
        space = embedding_space(
            base.digest, None if chosen.version is base else chosen.version.digest
        )
        apart = wish.pooling not in (None, runtime.sentence(chosen.version).pooling)
        spaces.append(f"{space};pooling={wish.pooling}" if apart else space)
    return spaces
