"""What an adapter is for: vectors, labels, or the score of a pair."""

from __future__ import annotations

from typing import Literal

from app.adapters.values import Adapter

Kind = Literal["embedding", "classifier", "reranker"]


def kind_of(adapter: Adapter) -> Kind:
    """By its head: none, several labels (or words that get one), exactly one label."""
    if adapter.head is None:
        return "embedding"
    reranks = adapter.task == "classify" and len(adapter.labels) == 1
    return "reranker" if reranks else "classifier"
