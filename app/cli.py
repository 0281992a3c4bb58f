"""The command `bert-lora`. Every setting is a flag; torch is imported only once serving starts."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from app.logs import set_up
from app.settings import PREFIX, Settings, SettingsRefused, read_settings

T = TypeVar("T")
log = logging.getLogger("app")
cli = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # importing rich alone takes 0.2 s
    help="One frozen BERT in memory, many LoRA adapters, each request picks its own.",
)


def _serve(**flags: Any) -> None:
    """Serve the base and its adapters over HTTP until interrupted."""
    try:
        settings = read_settings(flags)
    except SettingsRefused as error:
        if _wants_json(flags):
            set_up("json")
            log.critical("cannot start: %(reason)s", {"reason": str(error)})
        else:
            typer.echo(f"bert-lora: {error}", err=True)
        raise typer.Exit(2) from None
    set_up(settings.log_format)
    for caught in (signal.SIGTERM, signal.SIGINT):  # until it serves
        signal.signal(caught, lambda *_: sys.exit(0))
    gc.disable()  # nothing that an import makes is garbage: looking takes a tenth of the start
    from app.assemble import StartRefused
    from app.serve import serve  # torch and transformers: seconds

    try:
        serve(settings)
    except StartRefused as error:
        log.critical("cannot start: %(reason)s", {"reason": str(error)})
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _wants_json(flags: Mapping[str, Any]) -> bool:
    """Of settings that could not be read."""
    form = flags.get("log_format") or os.environ.get(f"{PREFIX}LOG_FORMAT", "")
    return str(form) == "json"


def _flag(name: str) -> inspect.Parameter:
    """The setting as a keyword that typer reads; its value is checked by Settings."""
    field = Settings.model_fields[name]
    default = "" if field.default is None else f" [default: {field.default}]"
    option = typer.Option(
        None,
        f"--{name.replace('_', '-')}",
        help=f"{field.description}{default} [{PREFIX}{name.upper()}]",
        show_default=False,
        metavar="VALUE",
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=option, annotation=str | None)


_serve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [_flag(name) for name in Settings.model_fields]
)
cli.command("serve")(_serve)

Layout = Literal["peft", "tutorial", "tutorial-swapped"]
Task = Literal["embed", "classify", "tokens"]
Model = Annotated[
    str | None,
    typer.Option("--model", help="The base: a folder or hub id. [default: the embedded one]"),
]


@cli.command()
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
    text, served = _tool(lambda: run(source, model, options, as_json=as_json))
    typer.echo(text)
    raise typer.Exit(0 if served else 1)


@cli.command()
def certify(
    folder: Annotated[Path, typer.Argument(help="A PEFT folder.")],
    model: Model = None,
    inputs: Annotated[
        Path | None, typer.Option(help="A file with one text a line. [default: five texts]")
    ] = None,
) -> None:
    """Write golden.jsonl into the folder: PEFT's answers, checked at upload and at every start."""
    from app.tools.certify import certify as run

    typer.echo(_tool(lambda: run(folder, model, None if inputs is None else _lines(inputs))))


@cli.command()
def extract(
    checkpoint: Annotated[Path, typer.Argument(help="A fully fine-tuned checkpoint's folder.")],
    output: Annotated[Path, typer.Argument(help="The adapter's folder, to be made.")],
    rank: Annotated[int, typer.Option(min=1, help="Of each layer's update.")] = 16,
    model: Model = None,
) -> None:
    """Turn a fine-tuned checkpoint of the same base into an adapter; say what is left out."""
    from app.tools.extract import extract as run

    typer.echo(_tool(lambda: run(checkpoint, model, rank, output)))


def _lines(path: Path) -> list[str]:
    """The file's texts, one a line."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _tool(work: Callable[[], T]) -> T:
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


if __name__ == "__main__":
    cli()
