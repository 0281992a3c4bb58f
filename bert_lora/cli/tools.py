"""bert-lora check, certify and extract: about adapters on this disk, without a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

T = TypeVar("T")
Layout = Literal["peft", "tutorial", "tutorial-swapped"]
Task = Literal["embed", "classify", "tokens"]
Model = Annotated[
    str | None,
    typer.Option("--model", help="The base: a folder or hub id. [default: the embedded one]"),
]


def check(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Or a .safetensors, tar or zip.")
    ],
    model: Model = None,
    alpha: Annotated[
        float | None, typer.Option(help="LoRA's alpha, where no file says it.")
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="What B A is multiplied by, in place of alpha / r.")
    ] = None,
    layout: Annotated[Layout | None, typer.Option(help="Whose keys they are.")] = None,
    labels: Annotated[str | None, typer.Option(help="neg,pos: the head's labels in order.")] = None,
    task: Annotated[Task | None, typer.Option(help="What the head is for.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The report as the server gives it.")
    ] = False,
) -> None:
    """Say whether an adapter would be served, and what it changes; 1 if it would be refused."""
    from app.adapters.recipe import Options
    from app.tools.check import check as run

    named = None if labels is None else tuple(labels.split(","))
    options = Options(alpha=alpha, layout=layout, labels=named, task=task, scale=scale)
    text, served = tool(lambda: run(source, model, options, as_json=as_json))
    typer.echo(text)
    raise typer.Exit(0 if served else 1)


def certify(
    folder: Annotated[Path, typer.Argument(help="A PEFT folder.")],
    model: Model = None,
    inputs: Annotated[
        Path | None, typer.Option(help="A file with one text a line. [default: five texts]")
    ] = None,
) -> None:
    """Write golden.jsonl into the folder: PEFT's answers, checked at upload and at every start."""
    from app.tools.certify import certify as run

    typer.echo(tool(lambda: run(folder, model, None if inputs is None else _lines(inputs))))


def extract(
    checkpoint: Annotated[Path, typer.Argument(help="A fully fine-tuned checkpoint's folder.")],
    output: Annotated[Path, typer.Argument(help="The adapter's folder, to be made.")],
    rank: Annotated[int, typer.Option(min=1, help="Of each layer's update.")] = 16,
    model: Model = None,
) -> None:
    """Turn a fine-tuned checkpoint of the same base into an adapter; say what is left out."""
    from app.tools.extract import extract as run

    typer.echo(tool(lambda: run(checkpoint, model, rank, output)))


def _lines(path: Path) -> list[str]:
    """The file's texts, one a line."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def tool(work: Callable[[], T]) -> T:
    """A tool's result; what it cannot do is one line and exit code 1."""
    import transformers

    from app.adapters.refusals import AdapterRejected
    from app.model.base_files import BaseRefused
    from app.model.embedded import EmbeddedBaseMissing
    from app.tools.certify import CannotCertify
    from app.tools.extract import CannotExtract

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    known = (
        AdapterRejected,
        BaseRefused,
        EmbeddedBaseMissing,
        CannotCertify,
        CannotExtract,
        OSError,
        UnicodeDecodeError,
    )
    try:
        return work()
    except known as error:
        typer.echo(f"bert-lora: {error}", err=True)
        for problem in getattr(error, "problems", []):
            typer.echo(f"  {problem.tensor or ''} {problem.reason}", err=True)
        raise typer.Exit(1) from None
