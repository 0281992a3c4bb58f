"""Texts -> each token's state, as the model leaves it: what pooling would make one vector of.

Answers grow with tokens times the base's width, so they have a bound of their own.
"""

from __future__ import annotations

from dataclasses import replace

from app.inference.caller import Caller
from app.inference.choose import Selection, choose
from app.inference.embed import EmbedWish, prompts_of
from app.inference.read import Texts
from app.inference.run import Ran, run
from app.inference.runtime import Runtime
from app.model.sequence import Want

MOST_NUMBERS = 8 << 20  # of one answer: 8,192 tokens of a base that is 1,024 wide, 32 MiB
STATES = Want("states")


async def token_states(
    runtime: Runtime,
    caller: Caller,
    texts: Texts,
    selection: Selection = Selection(),  # noqa: B008 - frozen
    prompt_name: str | None = None,
) -> Ran:
    """The last hidden state of every token, special ones included: lines of [n, H], not scaled.

    Call it, and write its answer, while holding runtime.token_states.
    Raises TooManyInputs for an answer over MOST_NUMBERS, Invalid for an unknown prompt; and what
    choose and run raise.
    """
    choice = await choose(runtime, caller, selection, len(texts.items))
    prompt = prompts_of(runtime, EmbedWish(prompt_name=prompt_name), texts.items, choice)
    most = MOST_NUMBERS // runtime.engine.encoder.base.hidden
    return await run(runtime, caller, choice, replace(texts, prompt=prompt), lambda _: STATES, most)
