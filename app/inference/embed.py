"""Texts -> vectors: what a call asks of them over what the adapter says over what the base says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from app.adapters.sentence import Pooling, Sentence
from app.catalog.registry import UnknownAdapter
from app.engine.tokenizer import Input
from app.inference.caller import Caller
from app.inference.choose import BASE, Choice, Chosen, Selection, alike, choose
from app.inference.errors import Ambiguous, Invalid
from app.inference.read import Texts
from app.inference.run import Ran, run
from app.inference.runtime import Runtime
from app.inference.tasks import Task, find_task
from app.model.sequence import Want, wanted_embedding
from app.model.version import embedding_space


@dataclass(frozen=True)
class EmbedWish:
    """How the vectors are wanted. None: as the task says, the adapter, or the base's own files.

    task: one of Runtime.tasks; it also chooses the adapter, where the call chooses none. purposes:
    names that the prompt for what the vectors are for may have, or a task; where there is none of
    them, the adapter's default prompt stands.
    """

    normalize: bool | None = None
    pooling: Pooling | None = None
    dimensions: int | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    task: str | None = None
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

    A prompt_name, or a purpose, that is no prompt of the adapter's or the base's names a task.
    Raises Invalid for a wish that an adapter cannot meet, and for an unknown task; Ambiguous where
    the task is another adapter's; and what choose and run raise.
    """
    task = find_task(runtime.tasks, wish.task, caller)
    choice = await _choose(
        runtime, caller, _selection(runtime, selection, wish, task), len(texts.items), wish
    )
    if wish.task is None and (meant := _task_meant(runtime, wish, choice)):
        named = replace(wish, task=meant, prompt_name=None, purposes=())
        return await embed(runtime, caller, texts, selection, named)
    wish = _over(wish, task, texts.items)
    prompted = replace(texts, prompt=prompts_of(runtime, wish, texts.items, choice))
    ran = await run(runtime, caller, choice, prompted, _wants(runtime, wish, choice))
    return Embedded(ran, _spaces(runtime, wish, choice))


def _selection(
    runtime: Runtime, selection: Selection | Choice, wish: EmbedWish, task: Task
) -> Selection | Choice:
    """The task's adapter, where the call chooses none; the base, which some clients have to name,
    is none. Raises Ambiguous.
    """
    if task.adapter is None:
        return selection
    if isinstance(selection, Choice):
        names = {chosen.name for chosen in selection.distinct}
    else:
        spelled = [*selection.adapters, *(name or BASE for name in selection.per_input or ())]
        names = {alike(runtime, each) for each in spelled}
        if selection.per_input is None and names <= {BASE}:
            return Selection([task.adapter])
    if others := sorted(names - {task.adapter}):
        raise Ambiguous(
            f"task {wish.task!r} is the adapter {task.adapter}'s, and {', '.join(others):.200} is "
            "chosen beside it: send one of them"
        )
    return selection


async def _choose(
    runtime: Runtime, caller: Caller, selection: Selection | Choice, count: int, wish: EmbedWish
) -> Choice:
    """As choose; where a task's adapter is missing, the error names the task, too."""
    try:
        return await choose(runtime, caller, selection, count)
    except UnknownAdapter as error:
        if wish.task is None:
            raise
        why = error.why or f"no adapter is called {error.name!r}"
        why = f"task {wish.task!r} needs its adapter, and {why}"
        raise UnknownAdapter(error.name, error.nearest, why) from None


def _task_meant(runtime: Runtime, wish: EmbedWish, choice: Choice) -> str | None:
    """The task that prompt_name or a purpose names, unless each adapter has such a prompt, or one
    is another than the task's.
    """
    names = [wish.prompt_name] if wish.prompt_name else wish.purposes
    prompts = [runtime.sentence(chosen.version).prompts or {} for chosen in choice.distinct]
    if all(any(name in own for name in names) for own in prompts):
        return None
    adapters = {chosen.name for chosen in choice.distinct} - {BASE}
    fitting = (
        name for name in names if name in runtime.tasks and runtime.tasks[name].fits(adapters)
    )
    return next(fitting, None)


def _over(wish: EmbedWish, task: Task, items: Sequence[Input]) -> EmbedWish:
    """Each member of the wish, or the task's where it is None. Raises Invalid."""
    prompt = wish.prompt
    if prompt is None and wish.prompt_name is None:
        prompt = task.prompt
        if prompt and any(isinstance(item, list) for item in items):
            raise Invalid("task", f"is {wish.task!r}, whose prompt cannot be put before token ids")
    return replace(wish, prompt=prompt, pooling=wish.pooling or task.pooling)


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
    if (wish.prompt or wish.prompt_name) and any(isinstance(item, list) for item in items):
        name = "prompt" if wish.prompt else "prompt_name"
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
