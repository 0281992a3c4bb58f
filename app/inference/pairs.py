"""Pairs of texts -> one score each: by a head of one label, or by how near their vectors are."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from app.engine.tokenizer import InputRefused
from app.inference.caller import Caller
from app.inference.choose import Choice, Selection, choose
from app.inference.classify import Scored, score
from app.inference.embed import embed
from app.inference.read import Texts
from app.inference.runtime import Runtime


async def score_pairs(
    runtime: Runtime,
    caller: Caller,
    pairs: Texts,
    selection: Selection,
    *,
    raw_scores: bool = False,
) -> Scored:
    """A number for each pair: as score() where the adapter has a head, else the cosine of what
    embed() gives for the two texts, each of which is run once.

    Raises InputRefused with the index of the pair; and what score and embed raise.
    """
    items = [item for item in pairs.items if isinstance(item, tuple)]
    choice = await choose(runtime, caller, selection, len(items))
    chosen = choice.lines[0][0]
    if chosen.version.adapter.head is not None:
        return await score(runtime, caller, pairs, choice, raw_scores=raw_scores)
    places = {text: i for i, text in enumerate(dict.fromkeys(t for pair in items for t in pair))}
    texts = replace(pairs, items=list(places))
    try:
        embedded = await embed(runtime, caller, texts, Choice([[chosen] * len(places)], False))
    except InputRefused as error:
        text = list(places)[error.index]
        index = next(i for i, pair in enumerate(items) if text in pair)
        raise InputRefused(index, error.reason) from None
    vectors = F.normalize(torch.stack(embedded.ran.lines[0]), dim=1)
    first, second = (vectors[[places[pair[side]] for pair in items]] for side in (0, 1))
    return Scored(embedded.ran, (first * second).sum(dim=1).tolist())
