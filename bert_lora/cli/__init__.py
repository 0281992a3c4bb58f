"""The command `bert-lora`. A module a family of commands, imported when one of them is asked for.

A new command: a function in a module of this package, and its line in COMMANDS. What is heavy
(torch, pydantic) is imported by the commands that need it, so that the others start at once.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

COMMANDS = {  # name: the module with a function of that name; in the order of --help
    "serve": "serve",
    "deploy": "deploy",
    "check": "tools",
    "certify": "tools",
    "extract": "tools",
    "embed": "bulk",
    "classify": "bulk",
    "rerank": "bulk",
    "push": "adapters",
    "ls": "adapters",
    "show": "adapters",
    "rm": "adapters",
    "merge": "adapters",
    "unmerge": "adapters",
    "rollback": "adapters",
    "train": "train",
}
# Rounds that OpenMP's threads wait without sleeping: some 0.1 ms. By default it is milliseconds, in
# which they keep a core from whoever else has work (docs/decisions/0024).
SPINS = "10000"
HELP = "One frozen BERT in memory, many LoRA adapters, each request picks its own."


class Commands(TyperGroup):
    """COMMANDS, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command; None for a name that is none."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"{__name__}.{COMMANDS[cmd_name]}")
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(cmd_name)(getattr(module, cmd_name))
        return typer.main.get_command(alone)


cli = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # importing rich alone takes 0.2 s
    pretty_exceptions_enable=False,
    help=HELP,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # 0.04 s

        typer.echo(f"bert-lora {version('bert-lora-server')}")
        raise typer.Exit


@cli.callback()
def _whole(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is imported
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
