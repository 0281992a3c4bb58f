"""Which adapters rerank, and the one that does where a call names none. Runs nothing."""

from __future__ import annotations

import asyncio

from app.catalog.registry import UnknownAdapter
from app.inference.caller import Caller
from app.inference.choose import Choice, Selection, choose
from app.inference.errors import NoHead
from app.inference.runtime import Runtime

MOST_NAMED = 50  # adapters of a refusal


async def choose_ranker(
    runtime: Runtime, caller: Caller, selection: Selection | Choice, count: int
) -> Choice:
    """As choose(); of an empty selection the only adapter with a head of one label.

    Many clients that rerank cannot name an adapter, others name a model of their own. Raises NoHead
    where nothing is chosen and not exactly one adapter could be; UnknownAdapter with those that
    rerank; and what choose raises.
    """
    if isinstance(selection, Choice):
        return selection
    if selection.adapters:
        try:
            return await choose(runtime, caller, selection, count)
        except UnknownAdapter as error:
            names = await _rankers(runtime, caller)
            nearest = [*error.nearest, *(name for name in names if name not in error.nearest)]
            raise UnknownAdapter(error.name, nearest[:MOST_NAMED], error.why) from None
    names = await _rankers(runtime, caller)
    if not runtime.names.whole:  # each server would choose among those that it happens to know
        why = "no adapter is chosen, and the store has more than are looked through for one"
        raise NoHead(why, names[:MOST_NAMED])
    if len(names) != 1:
        some = names[:MOST_NAMED]
        rerank = f"{len(names)} adapters rerank: {', '.join(some)}" if names else "none reranks"
        raise NoHead(f"no adapter is chosen, and {rerank} (a head of one label)", some)
    return await choose(runtime, caller, Selection(names), count)


async def _rankers(runtime: Runtime, caller: Caller) -> list[str]:
    """In a thread, since there may be 100,000 of them."""
    return await asyncio.to_thread(caller.usable, tuple(runtime.registry.rankers))
