"""Logits -> what /classify answers: labels with scores, or entities with their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from torch import Tensor

from app.adapters.values import Adapter
from app.api.choosing import Choice, Chosen
from app.api.errors import Refusal, invalid
from app.api.keys import may_use
from app.api.running import Ran
from app.api.serving import Serving
from app.engine.tokenizer import Input, Tokens
from app.inference.words import Strategy, word_groups
from app.model.head import scores

MOST_NAMED = 50  # adapters of a refusal


@dataclass(frozen=True)
class Labelling:
    """How the request wants its labels."""

    raw_scores: bool = False
    top_k: int | None = None
    threshold: float | None = None
    strategy: Strategy = "simple"


def adapter_of(request: Request, serving: Serving, chosen: Chosen) -> Adapter:
    """The chosen adapter, which has a head. Raises Refusal (no_head)."""
    adapter = chosen.version.adapter if chosen.version else None
    if adapter is not None and adapter.head is not None:
        return adapter
    with_head = [
        n for n, e in serving.registry.names.items() if e.report.has_head and may_use(request, n)
    ]
    with_head, count = sorted(with_head)[:MOST_NAMED], len(with_head)
    who = f"adapter {chosen.name}" if chosen.version else "the base"
    raise Refusal(
        422,
        "no_head",
        f"{who} has no classification head; {count} have one: {', '.join(with_head) or 'none'}",
        more={"adapters_with_head": with_head},
    )


def refuse_unanswerable(
    request: Request, serving: Serving, choice: Choice, items: Sequence[Input]
) -> None:
    """Raises Refusal for an adapter without a head, and for words asked of what is no text."""
    for line in choice.lines:
        for i, (chosen, item) in enumerate(zip(line, items, strict=True)):
            if adapter_of(request, serving, chosen).task != "tokens":
                continue
            why = f"and {chosen.name} labels the words of a text, with their places"
            if not isinstance(item, str):
                raise invalid(f"inputs[{i}]", f"is no text, {why}")
            if request.state.shortened:
                raise invalid("inputs", f"hold a text that is too long to be kept whole, {why}")


def labelled(
    request: Request,
    serving: Serving,
    choice: Choice,
    items: Sequence[Input],
    ran: Ran,
    how: Labelling,
) -> list[list[Any]]:
    """One answer per line and input."""
    return [
        [
            _one(serving, adapter_of(request, serving, c), item, tokens, logits, how)
            for c, item, tokens, logits in zip(line, items, read, rows, strict=True)
        ]
        for line, read, rows in zip(choice.lines, ran.read, ran.lines, strict=True)
    ]


def _one(
    serving: Serving, adapter: Adapter, item: Input, tokens: Tokens, logits: Tensor, how: Labelling
) -> list[dict[str, Any]]:
    values = logits if how.raw_scores else scores(logits, adapter.scores)
    if adapter.task == "tokens":
        found = word_groups(
            serving.tokenizer, str(item), tokens, values, adapter.labels, how.strategy
        )
    else:
        pairs = zip(values.tolist(), adapter.labels, strict=True)
        best = sorted(pairs, key=lambda pair: -pair[0])
        found = [{"label": label, "score": score} for score, label in best[: how.top_k]]
    return [e for e in found if how.threshold is None or e["score"] >= how.threshold]
