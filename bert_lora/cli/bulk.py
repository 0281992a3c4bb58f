"""bert-lora embed, classify, rerank: texts of a file or stdin, by a server or by this process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bert_lora.cli.connection import (
    PATIENCE_S,
    URL,
    AdapterName,
    Key,
    Local,
    Model,
    Patience,
    Place,
    Url,
    told,
)
from bert_lora.cli.job import Job
from bert_lora.cli.outputs import Row
from bert_lora.cli.sources import Format, source_of
from bert_lora.options import ClassifyOptions, EmbedOptions, RerankOptions

INPUT = "Texts, one a line; or .csv, .tsv, .jsonl, .parquet. [default: -, which is stdin]"
OUTPUT = ".jsonl, .parquet or, for vectors, .npy. [default: JSONL to stdout]"
COLUMN = "Which column, or member of JSON, has the text. [default: text, or the only one]"
Input = Annotated[Path, typer.Argument(metavar="[INPUT]", help=INPUT, show_default=False)]
Output = Annotated[Path | None, typer.Option("--output", "-o", help=OUTPUT)]
Column = Annotated[str | None, typer.Option("--column", "--field", help=COLUMN)]
Form = Annotated[
    Format | None, typer.Option("--format", help="Of the input. [default: its ending]")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a run was cut off.")]
Progress = Annotated[
    bool | None, typer.Option(help="A bar on stderr. [default: on a terminal]", show_default=False)
]
Raw = Annotated[bool, typer.Option("--raw-scores", help="The head's own numbers.")]
Pooling = Literal["mean", "cls", "last", "max", "pooler"]
STDIN = Path("-")


def embed(
    path: Input = STDIN,
    output: Output = None,
    adapter: AdapterName = None,
    column: Column = None,
    form: Form = None,
    resume: Resume = False,
    progress: Progress = None,
    normalize: Annotated[bool | None, typer.Option(help="Length 1.", show_default=False)] = None,
    pooling: Annotated[Pooling | None, typer.Option()] = None,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Only the first ones.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Put before each text.")] = None,
    prompt_name: Annotated[str | None, typer.Option(help="A prompt of the model's.")] = None,
    task: Annotated[str | None, typer.Option(help="One of the server's tasks.")] = None,
    url: Url = URL,
    api_key: Key = None,
    local: Local = False,
    model: Model = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """Vectors of texts: a line of JSON each, or an array."""
    options: EmbedOptions = {
        "normalize": normalize,
        "pooling": pooling,
        "dimensions": dimensions,
        "prompt": prompt,
        "prompt_name": prompt_name,
        "task": task,
    }
    with told():
        source = source_of(path, form, column)
    Job(
        Place(url, api_key, adapter, local, model, patience),
        source, output, resume, progress, "embed", options,
        ask=lambda calls: calls.core.embedding(options),
        row=lambda _, text, vector: {"text": text, "embedding": vector},
        vectors=True,
    ).run()  # fmt: skip


def classify(
    path: Input = STDIN,
    output: Output = None,
    adapter: AdapterName = None,
    column: Column = None,
    form: Form = None,
    resume: Resume = False,
    progress: Progress = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Only the best labels.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Only scores of at least this.")] = None,
    raw_scores: Raw = False,
    url: Url = URL,
    api_key: Key = None,
    local: Local = False,
    model: Model = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """Labels of texts, best first, by an adapter with a head: a line of JSON each."""
    options: ClassifyOptions = {
        "top_k": top_k,
        "threshold": threshold,
        "raw_scores": raw_scores,
    }
    with told():
        source = source_of(path, form, column)
    Job(
        Place(url, api_key, adapter, local, model, patience),
        source, output, resume, progress, "classify", options,
        ask=lambda calls: calls.core.labelling(options),
        row=lambda _, text, labels: {"text": text, "labels": labels},
    ).run()  # fmt: skip


def rerank(
    query: Annotated[str, typer.Option(help="What the texts are to answer.")],
    path: Input = STDIN,
    output: Output = None,
    adapter: AdapterName = None,
    column: Column = None,
    form: Form = None,
    resume: Resume = False,
    progress: Progress = None,
    top_n: Annotated[int | None, typer.Option(min=1, help="Only the best texts.")] = None,
    raw_scores: Raw = False,
    url: Url = URL,
    api_key: Key = None,
    local: Local = False,
    model: Model = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """Texts by how well each answers a query, best first; the adapter has a head of one label."""
    options: RerankOptions = {"raw_scores": raw_scores}

    def best_first(rows: list[Row]) -> list[Row]:
        ranking: list[Row] = sorted(rows, key=lambda row: -row["score"])
        return ranking[:top_n]

    with told():
        source = source_of(path, form, column)
    common: dict[str, Any] = {**options, "query": query, "top_n": top_n}
    Job(
        Place(url, api_key, adapter, local, model, patience),
        source, output, resume, progress, "rerank", common,
        ask=lambda calls: calls.core.scoring(query, options),
        row=lambda i, text, score: {"index": i, "score": score, "text": text},
        order=best_first,
    ).run()  # fmt: skip
