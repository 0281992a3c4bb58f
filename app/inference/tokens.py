"""Texts -> the tokens that an adapter reads, and ids back to texts; nothing runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from app.engine.tokenizer import Cut, InputRefused, TextTokenizer, tokenize
from app.inference.caller import Caller
from app.inference.choose import Selection, choose
from app.inference.embed import EmbedWish, prompts_of
from app.inference.errors import TooManyInputs
from app.inference.read import Texts
from app.inference.runtime import Runtime

MOST = 131_072  # characters, or ids, of one call: some ten MB of answer


@dataclass(frozen=True)
class Token:
    """text: the part of the input that it stands for; of a special token its own name.

    start, stop: the first character of that part and the one behind it, counted from the prompt's
    beginning; None of a special token.
    """

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


async def tokens_of(
    runtime: Runtime,
    caller: Caller,
    texts: Texts,
    selection: Selection = Selection(),  # noqa: B008 - frozen
    *,
    specials: bool = True,
    prompt_name: str | None = None,
) -> list[list[Token]]:
    """The tokens that the adapter reads of each text, its prompt included; nothing is cut off.

    Raises InputRefused for an empty text, Invalid for an unknown prompt, TooManyInputs over MOST
    characters; and what choose raises.
    """
    choice = await choose(runtime, caller, selection, len(texts.items))
    prompt = prompts_of(runtime, EmbedWish(prompt_name=prompt_name), texts.items, choice)
    before = prompt(choice.distinct[0])
    _refuse_large(texts.size + len(before) * len(texts.items), "characters", texts.shortened)
    whole = [str(text) for text in texts.items]
    return await asyncio.to_thread(_tokens, runtime.tokenizer, whole, before, specials)


async def texts_of(
    runtime: Runtime,
    caller: Caller,
    ids: Sequence[list[int]],
    selection: Selection = Selection(),  # noqa: B008 - frozen
    *,
    skip_specials: bool = True,
) -> list[str]:
    """Each list of ids as the text that the tokenizer makes of it.

    Raises InputRefused for an id outside the vocabulary, TooManyInputs over MOST ids; and what
    choose raises.
    """
    await choose(runtime, caller, selection, len(ids))
    _refuse_large(sum(map(len, ids)), "token ids")
    vocabulary = runtime.tokenizer.vocabulary
    for i, row in enumerate(ids):
        if not all(0 <= token < vocabulary for token in row):
            raise InputRefused(i, f"has a token id outside of 0 to {vocabulary - 1}")
    decode = runtime.tokenizer.backend.decode_batch
    return await asyncio.to_thread(decode, list(ids), skip_special_tokens=skip_specials)


def _refuse_large(size: int, unit: str, shortened: bool = False) -> None:
    if size > MOST or shortened:
        raise TooManyInputs(f"the request has over {MOST:,} {unit}: send several requests")


def _tokens(
    tokenizer: TextTokenizer, texts: list[str], prompt: str, specials: bool
) -> list[list[Token]]:
    rows = []
    for text, tokens in zip(texts, tokenize(tokenizer, texts, Cut(8 * MOST), prompt), strict=True):
        places = tokens.places or []
        row = [
            _token(tokenizer, prompt + text, token, place)
            for token, place in zip(tokens.ids, places, strict=True)
        ]
        rows.append([token for token in row if specials or not token.special])
    return rows


def _token(tokenizer: TextTokenizer, text: str, token: int, place: tuple[int, int] | None) -> Token:
    if place is None:
        return Token(token, tokenizer.backend.id_to_token(token) or "", True, None, None)
    return Token(token, text[slice(*place)], False, *place)
