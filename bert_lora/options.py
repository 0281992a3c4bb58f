"""What a call may ask for beside its texts, by name. What is left out is as the adapter says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict


class EmbedOptions(TypedDict, total=False):
    """Of embed. docs/api.md has each member below POST /embed.

    adapter: `name`, `name@version` or `base`, for all texts; or one for each text, None being the
    base. Left out: the client's own.
    """

    adapter: str | Sequence[str | None] | None
    normalize: bool | None
    pooling: Literal["mean", "cls", "last", "max", "pooler"] | None
    dimensions: int | None
    prompt: str | None
    prompt_name: str | None
    task: str | None
    truncate: bool
    truncation_direction: Literal["left", "right"]


class ClassifyOptions(TypedDict, total=False):
    """Of classify. docs/api.md has each member below POST /classify."""

    adapter: str | Sequence[str | None] | None
    raw_scores: bool
    top_k: int | None
    threshold: float | None
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"]
    truncate: bool
    truncation_direction: Literal["left", "right"]


class RerankOptions(TypedDict, total=False):
    """Of rerank. adapter: one with a head of one label; left out, the only one there is."""

    adapter: str | None
    raw_scores: bool
    truncate: bool
    truncation_direction: Literal["left", "right"]


class ComposeOptions(TypedDict, total=False):
    """Of compose; the names are PEFT's."""

    weights: Sequence[float]
    combination_type: str
    svd_rank: int
    density: float
    majority_sign_method: str
    seed: int


class PutOptions(TypedDict, total=False):
    """Of put: what the files do not say, and how. docs/api.md has each below PUT /adapters/{name}.

    labels: the head's, in order.
    """

    alpha: float | None
    scale: float | None
    layout: Literal["peft", "tutorial", "tutorial-swapped"] | None
    labels: Sequence[str] | None
    pooling: Literal["mean", "cls", "last", "max", "pooler"] | None
    normalize: bool | None
    task: Literal["embed", "classify", "tokens"] | None
    problem_type: (
        Literal["single_label_classification", "multi_label_classification", "regression"] | None
    )
    path: str | None
    tokens_per_s: float | None
    stage: bool
    dry_run: bool
    allow_noop: bool


Labels = list[dict[str, Any]]  # of one text, best first: label, score; or its words with places
Adapter = dict[str, Any]  # docs/api.md's adapter object
Adapters = list[Adapter]
Versions = list[dict[str, Any]]  # of a name, oldest first


def members(options: Any) -> dict[str, Any]:
    """Those that were given, without the adapter: each call has its own way to spell that."""
    return {k: v for k, v in options.items() if v is not None and k != "adapter"}


def put_query(options: PutOptions) -> dict[str, Any]:
    """As PUT's query spells them."""
    query = members(options)
    if "labels" in query:
        query["labels"] = ",".join(query["labels"])
    return query
