"""bert-lora train: a data file -> a served adapter and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bert_lora.cli.connection import Key, server

Task = Literal[
    "classify", "multi-label", "regression", "words", "rerank", "embeddings", "similarity"
]  # fmt: skip
NAME = r"[a-z0-9][a-z0-9._-]*"


DataFile = Annotated[Path, typer.Argument(help="CSV, TSV, JSONL, Parquet; .conll for words.")]
NameOption = Annotated[str, typer.Option(help="The adapter's name.")]
OutOption = Annotated[Path | None, typer.Option(help="Its folder. [default: adapters/NAME]")]
PushOption = Annotated[
    str | None, typer.Option(metavar="URL", help="A server that gets it when it is ready.")
]
TaskOption = Annotated[Task | None, typer.Option(help="[default: by the label's column]")]
TextOption = Annotated[str | None, typer.Option(help="The text's column.")]
PairOption = Annotated[str | None, typer.Option(help="The second text's column.")]
LabelOption = Annotated[
    str | None, typer.Option(help="The label's column; several of 0 and 1: a,b,c.")
]
DevOption = Annotated[Path | None, typer.Option(help="Rows to measure on after each epoch.")]
TestOption = Annotated[Path | None, typer.Option(help="Rows to measure on once, at the end.")]
DevShareOption = Annotated[
    float, typer.Option(min=0.01, max=0.5, help="Held back where there is no --dev.")
]
EncodingOption = Annotated[str | None, typer.Option(help="[default: UTF-8, or by its mark]")]
HeaderOption = Annotated[bool | None, typer.Option(help="Whether the first row names the columns.")]
ModelOption = Annotated[
    str | None, typer.Option(help="The base: a folder or hub id. [default: the embedded one]")
]
RankOption = Annotated[int, typer.Option(min=1, max=256)]
AlphaOption = Annotated[int | None, typer.Option(min=1, help="[default: twice the rank]")]
LayersOption = Annotated[
    int | None, typer.Option(min=1, help="Adapt the last so many. [default: half of them]")
]
EpochsOption = Annotated[int, typer.Option(min=1, help="At most; it stops when it gets no better.")]
LrOption = Annotated[float, typer.Option(min=0.0, help="The learning rate.")]
BatchOption = Annotated[int | None, typer.Option(min=1, help="Examples a step.")]
LongestOption = Annotated[int, typer.Option(min=8, help="Tokens of a text; the rest is cut.")]
SeedOption = Annotated[int, typer.Option()]


def train(
    data: DataFile,
    name: NameOption,
    out: OutOption = None,
    push: PushOption = None,
    api_key: Key = None,
    task: TaskOption = None,
    text: TextOption = None,
    pair: PairOption = None,
    label: LabelOption = None,
    dev: DevOption = None,
    test: TestOption = None,
    dev_share: DevShareOption = 0.1,
    encoding: EncodingOption = None,
    header: HeaderOption = None,
    model: ModelOption = None,
    rank: RankOption = 8,
    alpha: AlphaOption = None,
    layers: LayersOption = None,
    epochs: EpochsOption = 3,
    lr: LrOption = 0.001,
    batch: BatchOption = None,
    longest: LongestOption = 128,
    seed: SeedOption = 0,
) -> None:
    """Train a LoRA adapter with a head on a labelled file, and say how good it is.

    A run that was interrupted goes on where it stood when the same command is given again.
    """
    from bert_lora.train.findings import BadData

    _name(name)
    if push is not None and not push.startswith(("http://", "https://")):
        raise typer.BadParameter("a URL, as http://127.0.0.1:8080", param_hint="--push")
    try:
        plan = _plan(locals())
        _run(plan, push, api_key)
    except (BadData, FloatingPointError) as error:
        typer.echo(f"bert-lora: {error}", err=True)
        raise typer.Exit(1) from None


def _name(name: str) -> None:
    import re

    if not re.fullmatch(NAME, name):
        raise typer.BadParameter("small letters, digits, . _ and -", param_hint="--name")


def _plan(asked: dict[str, Any]) -> Any:
    """Raises BadData where the packages for training are missing."""
    from bert_lora.train.findings import BadData

    try:
        from bert_lora.train.adapted import Sizes
        from bert_lora.train.loop import Schedule
        from bert_lora.train.run import Data, Plan
    except ImportError as error:
        raise BadData(
            f"training needs {error.name}: pip install 'bert-lora-server[train]'"
        ) from None
    get = asked.__getitem__
    data = Data(
        get("data"), get("dev"), get("test"), get("task"), get("text"), get("pair"), get("label"),
        get("encoding"), get("header"), get("dev_share"),
    )  # fmt: skip
    sizes = Sizes(get("rank"), get("alpha") or 2 * get("rank"), get("layers"))
    schedule = Schedule(get("epochs"), get("lr"), get("batch"), seed=get("seed"))
    out = get("out") or Path("adapters") / get("name")
    return Plan(get("name"), out, data, get("model"), sizes, schedule, get("longest"))


def _run(plan: Any, push: str | None, api_key: str | None) -> None:
    from bert_lora.cli.tools import tool
    from bert_lora.train import report
    from bert_lora.train.run import finish, run
    from bert_lora.train.watch import Bar

    with Bar() as bar:
        result = tool(lambda: run(plan, bar))
    task = result.facts["Task"].split(";")[0]
    tool(lambda: finish(plan, result, task))
    typer.echo(report.terminal(result))
    typer.echo(f"\n{plan.out}: the adapter; {plan.out / 'report.html'}: the whole report")
    if push is None:
        typer.echo(f"serve it: bert-lora serve, or bert-lora push {plan.out}")
        return
    with server(push, api_key) as client:
        adapter = client.put(plan.name, plan.out)
    call = "embed" if adapter["task"] == "embed" else "rerank" if task == "rerank" else "classify"
    typer.echo(f"served: {push}/{call}?adapter={plan.name}, version {adapter['version'][:12]}")
