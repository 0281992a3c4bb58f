"""bert-lora push, ls, show, rm, merge, unmerge, rollback: a server's adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import orjson
import typer

from bert_lora.cli.connection import URL, Key, Url, server
from bert_lora.options import Adapter, PutOptions

Name = Annotated[str, typer.Argument(help="The adapter's.")]
AsJson = Annotated[bool, typer.Option("--json", help="As the server gives it.")]
SHORT = 12  # hex digits of a version, as many as the server asks for


def push(
    source: Annotated[
        Path, typer.Argument(help="A PEFT folder, or a .safetensors, tar or zip.", exists=True)
    ],
    name: Annotated[str | None, typer.Argument(help="[default: the folder's]")] = None,
    alpha: Annotated[float | None, typer.Option(help="LoRA's, where no file says it.")] = None,
    scale: Annotated[float | None, typer.Option(help="In place of alpha / r.")] = None,
    labels: Annotated[str | None, typer.Option(help="neg,pos: the head's, in order.")] = None,
    task: Annotated[
        Literal["embed", "classify", "tokens"] | None, typer.Option(help="What the head is for.")
    ] = None,
    tokens_per_s: Annotated[float | None, typer.Option(min=0, help="Its quota; 0: none.")] = None,
    stage: Annotated[bool, typer.Option("--stage", help="Beside the current version.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report, and change nothing.")] = False,
    as_json: AsJson = False,
    url: Url = URL,
    api_key: Key = None,
) -> None:
    """Serve an adapter, or another version of one."""
    options: PutOptions = {
        "alpha": alpha,
        "scale": scale,
        "labels": None if labels is None else labels.split(","),
        "task": task,
        "tokens_per_s": tokens_per_s,
        "stage": stage,
        "dry_run": dry_run,
    }
    with server(url, api_key) as client:
        adapter = client.put(name or source.resolve().stem, source, **options)
    for warning in adapter.get("warnings", []):
        typer.echo(f"warning: {warning}", err=True)
    _print(adapter, as_json)


def ls(as_json: AsJson = False, url: Url = URL, api_key: Key = None) -> None:
    """The adapters that are served."""
    with server(url, api_key) as client:
        adapters = client.list()
    if as_json:
        _print_json(adapters)
        return
    rows: list[tuple[str, ...]] = [
        ("NAME", "VERSION", "TASK", "LABELS", "RANK", "MERGED", "CREATED")
    ]
    rows += [_row(adapter) for adapter in adapters]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def show(name: Name, url: Url = URL, api_key: Key = None) -> None:
    """One adapter and the versions that its name has held, as JSON."""
    with server(url, api_key) as client:
        adapter = client.get(name) | {"versions": client.versions(name)}
    _print_json(adapter)


def rm(names: Annotated[list[str], typer.Argument()], url: Url = URL, api_key: Key = None) -> None:
    """Stop serving adapters."""
    with server(url, api_key) as client:
        for name in names:
            client.delete(name)


def merge(name: Name, as_json: AsJson = False, url: Url = URL, api_key: Key = None) -> None:
    """Give an adapter its own merged copy of the layers it changes: memory for speed."""
    with server(url, api_key) as client:
        _print(client.merge(name), as_json)


def unmerge(name: Name, as_json: AsJson = False, url: Url = URL, api_key: Key = None) -> None:
    """Drop the merged copy."""
    with server(url, api_key) as client:
        _print(client.unmerge(name), as_json)


def rollback(
    name: Name,
    version: Annotated[str | None, typer.Argument(help="[default: the one before]")] = None,
    as_json: AsJson = False,
    url: Url = URL,
    api_key: Key = None,
) -> None:
    """Point a name at an earlier version of its own."""
    with server(url, api_key) as client:
        _print(client.rollback(name, version), as_json)


def _print(adapter: Adapter, as_json: bool) -> None:
    """One line, or all of it."""
    if as_json:
        _print_json(adapter)
        return
    name, version, task, labels, rank, merged, _ = _row(adapter)
    notes = [f"rank {rank}" if rank != "-" else "", f"{labels} labels" if labels != "-" else ""]
    notes += ["merged" if merged == "yes" else "", "unchanged" if adapter.get("unchanged") else ""]
    notes += [word for word in ("dry_run", "staged") if adapter.get(word)]
    typer.echo(", ".join(filter(None, [f"{name}@{version}", task, *notes])))


def _row(adapter: Adapter) -> tuple[str, ...]:
    return (
        adapter["name"],
        adapter["version"][:SHORT],
        adapter["task"],
        str(len(adapter["labels"])) if adapter["labels"] else "-",
        str(adapter["rank"]) if adapter["rank"] else "-",
        "yes" if adapter["merged"] else "no",
        adapter["created"] or "-",
    )


def _print_json(value: object) -> None:
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
