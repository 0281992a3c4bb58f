"""python -m benchmarks.load URL: how fast a running server answers at a steady rate of requests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from benchmarks.load.arrivals import Load, LoadRefused, made_texts
from benchmarks.load.percentiles import bench as measure
from benchmarks.load.sending import Unreachable

cli = typer.Typer(add_completion=False, rich_markup_mode=None)
Api = Literal["ours", "tei", "openai", "classify"]
Url = Annotated[str, typer.Argument(metavar="URL", help="A running server's.")]
Whose = Annotated[Api, typer.Option(help="Whose requests the server reads.")]
Names = Annotated[
    list[str] | None, typer.Option(help="Repeatable: one of them at random each; base: none.")
]
BaseName = Annotated[str | None, typer.Option(help="What --api openai calls the base.")]
Rate = Annotated[float, typer.Option(min=0.001, help="Requests a second, on average.")]
Seconds = Annotated[float, typer.Option(min=0.001, help="How long they are sent and counted.")]
Warmup = Annotated[float, typer.Option(min=0, help="Seconds before that, not counted.")]
Inputs = Annotated[int, typer.Option(min=1, help="Texts of one request.")]
Texts = Annotated[
    Path | None, typer.Option(help="A file with one text a line. [default: 8 to 63 random words]")
]
Header = Annotated[list[str] | None, typer.Option(help="Repeatable: 'Name: value'.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds of one attempt.")]
Retry = Annotated[bool, typer.Option("--retry", help="Send a 429 again, once, when it says.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the arrivals, adapters and texts.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]


@cli.command()
def load(
    url: Url,
    api: Whose = "ours",
    adapter: Names = None,
    model: BaseName = None,
    rate: Rate = 10,
    seconds: Seconds = 30,
    warmup: Warmup = 0,
    inputs: Inputs = 1,
    texts: Texts = None,
    header: Header = None,
    timeout: Timeout = 30,
    retry: Retry = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Send a running server requests at a steady rate, however it answers; 1 if none succeeds."""
    try:
        generated = Load(
            url, api, rate, seconds, made_texts(seed) if texts is None else _lines(texts),
            adapter or ["base"], model, inputs, header or [], warmup, timeout, retry, seed,
        )  # fmt: skip
        text, succeeded = measure(generated, as_json=as_json)
    except (LoadRefused, Unreachable, OSError, UnicodeDecodeError) as error:
        typer.echo(f"benchmarks.load: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, LoadRefused) else 1) from None
    typer.echo(text)
    raise typer.Exit(0 if succeeded else 1)


def _lines(path: Path) -> list[str]:
    """The file's texts, one a line."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


if __name__ == "__main__":
    cli()
