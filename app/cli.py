"""The command `bert-lora`. Every setting is a flag; torch is imported only once serving starts."""

from __future__ import annotations

import inspect
import logging
import sys
from typing import Any

import typer

from app.settings import PREFIX, Settings, SettingsRefused, read_settings

cli = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # importing rich alone takes 0.2 s
    help="One frozen BERT in memory, many LoRA adapters, each request picks its own.",
)


@cli.callback()
def _root() -> None:
    """Keeps `serve` a subcommand while it is the only one."""


def _serve(**flags: Any) -> None:
    """Serve the base and its adapters over HTTP until interrupted."""
    try:
        settings = read_settings(flags)
    except SettingsRefused as error:
        typer.echo(f"bert-lora: {error}", err=True)
        raise typer.Exit(2) from None
    from app.main import StartRefused, serve  # torch and transformers: seconds

    try:
        serve(settings)
    except StartRefused as error:
        logging.getLogger("app").critical("cannot start: %s", error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


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

if __name__ == "__main__":
    cli()
