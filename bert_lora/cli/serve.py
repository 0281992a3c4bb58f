"""bert-lora serve: every setting is a flag; torch is imported only once serving starts."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import typer

from app.logs import set_up
from app.settings import PREFIX, Settings, SettingsRefused, read_settings

log = logging.getLogger("app")


def serve(**flags: Any) -> None:
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
    from app.serve import serve as run  # torch and transformers: seconds

    try:
        run(settings)
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


FLAGS = [_flag(name) for name in Settings.model_fields]
serve.__signature__ = inspect.Signature(FLAGS)  # type: ignore[attr-defined]
