"""Texts -> labels with scores, words with their places, or one score each, by the adapters'
heads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from app.adapters.values import Adapter, Scores
from app.engine.tokenizer import Input, InputRefused, Tokens
from app.inference.caller import Caller
from app.inference.choose import BASE, Choice, Chosen, Selection, choose
from app.inference.errors import NoHead, WrongHead
from app.inference.rankers import MOST_NAMED, choose_ranker
from app.inference.read import Texts
from app.inference.run import Ran, run
from app.inference.runtime import Runtime
from app.inference.words import Strategy, word_groups
from app.model.head import scores
from app.model.sequence import Want

LOGITS = Want("logits")


@dataclass(frozen=True)
class LabelWish:
    """How labels are wanted. raw_scores: the logits, without the activation. top_k, threshold:
    which.

    strategy: how an adapter that labels tokens groups them. activation: instead of the adapter's.
    """

    raw_scores: bool = False
    top_k: int | None = None
    threshold: float | None = None
    strategy: Strategy = "simple"
    activation: Scores | None = None


@dataclass(frozen=True, eq=False)
class Classified:
    """answers[k][i]: of the k-th chosen line for input i, its labels, best first, or its words."""

    ran: Ran
    answers: list[list[list[dict[str, Any]]]]


@dataclass(frozen=True, eq=False)
class Scored:
    """scores[i]: of input i."""

    ran: Ran
    scores: list[float]

    def best(self, count: int | None = None) -> list[tuple[int, float]]:
        """(input, score) of the `count` best, or of all; best first, equal ones in their order."""
        return sorted(enumerate(self.scores), key=lambda place: -place[1])[:count]


@dataclass(frozen=True, eq=False)
class HeadScores:
    """rows[i]: of input i in the order of the head's labels, fp32: [L], or [n, L] of its n tokens.

    adapter: the one that has the head.
    """

    ran: Ran
    rows: list[Tensor]
    adapter: Adapter


async def classify(
    runtime: Runtime,
    caller: Caller,
    texts: Texts,
    selection: Selection | Choice = Selection(),  # noqa: B008 - frozen
    wish: LabelWish = LabelWish(),
) -> Classified:
    """Labels from the heads that the chosen adapters bring along.

    Raises NoHead; InputRefused for words asked of what is no text; and what choose and run raise.
    """
    choice = await choose(runtime, caller, selection, len(texts.items))
    for line in choice.lines:
        for i, chosen in enumerate(line):
            adapter = _with_head(runtime, caller, chosen)
            if adapter.task == "tokens":
                _refuse_no_text(texts, i, chosen.name)
    ran = await run(runtime, caller, choice, texts, lambda _: LOGITS)
    return Classified(ran, await asyncio.to_thread(_labelled, runtime, ran, texts.items, wish))


async def score(
    runtime: Runtime,
    caller: Caller,
    texts: Texts,
    selection: Selection | Choice = Selection(),  # noqa: B008 - frozen
    *,
    raw_scores: bool = False,
) -> Scored:
    """One number for each input, from a head of one label: its sigmoid, or the logit itself.

    Where nothing is chosen, the only adapter that has such a head answers. Raises NoHead,
    WrongHead; and what choose_ranker and run raise.
    """
    choice = await choose_ranker(runtime, caller, selection, len(texts.items))
    for chosen in choice.distinct:
        adapter = _with_head(runtime, caller, chosen)
        if adapter.task != "classify" or len(adapter.labels) != 1:
            raise WrongHead("adapter", "does not rerank: its head has not exactly one label")
    ran = await run(runtime, caller, choice, texts, lambda _: LOGITS)
    activation: Scores = "none" if raw_scores else "sigmoid"
    return Scored(ran, [float(scores(logits, activation)[0]) for logits in ran.lines[0]])


async def head_scores(
    runtime: Runtime, caller: Caller, texts: Texts, choice: Choice, *, raw_scores: bool = False
) -> HeadScores:
    """What the one chosen adapter's head says of all its labels, by its own activation.

    Raises NoHead; and what run raises.
    """
    adapter = _with_head(runtime, caller, choice.lines[0][0])
    ran = await run(runtime, caller, choice, texts, lambda _: LOGITS)
    activation: Scores = "none" if raw_scores else adapter.scores
    return HeadScores(ran, [scores(logits, activation) for logits in ran.lines[0]], adapter)


def _with_head(runtime: Runtime, caller: Caller, chosen: Chosen) -> Adapter:
    """The chosen adapter, which has a head. Raises NoHead."""
    adapter = chosen.version.adapter
    if adapter.head is not None:
        return adapter
    others = sorted(
        name
        for name, entry in runtime.registry.names.items()
        if entry.report.has_head and caller.may_use(name)
    )
    some = others[:MOST_NAMED]
    who = "the base" if chosen.name == BASE else f"adapter {chosen.name}"
    raise NoHead(
        f"{who} has no classification head; {len(others)} have one: {', '.join(some) or 'none'}",
        some,
    )


def _refuse_no_text(texts: Texts, index: int, name: str) -> None:
    """Raises InputRefused where an adapter that labels words gets something else than a whole
    text.
    """
    why = f"and {name} labels the words of a text, with their places"
    if not isinstance(texts.items[index], str):
        raise InputRefused(index, f"is no text, {why}")
    if texts.shortened:
        raise InputRefused(index, f"comes with a text that is too long to be kept whole, {why}")


def _labelled(
    runtime: Runtime, ran: Ran, items: Sequence[Input], wish: LabelWish
) -> list[list[list[dict[str, Any]]]]:
    """One answer per line and input."""
    return [
        [
            _labels(runtime, c.version.adapter, item, tokens, logits, wish)
            for c, item, tokens, logits in zip(line, items, read, rows, strict=True)
        ]
        for line, read, rows in zip(ran.choice.lines, ran.tokens, ran.lines, strict=True)
    ]


def _labels(
    runtime: Runtime,
    adapter: Adapter,
    item: Input,
    tokens: Tokens,
    logits: Tensor,
    wish: LabelWish,
) -> list[dict[str, Any]]:
    activation = "none" if wish.raw_scores else wish.activation or adapter.scores
    values = scores(logits, activation)
    if adapter.task == "tokens":
        labels = word_groups(
            runtime.tokenizer, str(item), tokens, values, adapter.labels, wish.strategy
        )
    else:
        pairs = zip(values.tolist(), adapter.labels, strict=True)
        best = sorted(pairs, key=lambda pair: -pair[0])[: wish.top_k]
        labels = [{"label": label, "score": value} for value, label in best]
    return [e for e in labels if wish.threshold is None or e["score"] >= wish.threshold]
