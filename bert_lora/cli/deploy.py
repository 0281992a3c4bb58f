"""bert-lora deploy ray: several replicas as an application of Ray Serve."""

from __future__ import annotations

import inspect
import os
from enum import StrEnum
from typing import Any

import typer

from app.settings import SettingsRefused, read_settings
from bert_lora.cli.serve import FLAGS

# What Ray reads as it is imported, and hands on to the processes that it starts. A cluster that is
# there already has to have been started with them (deploy/ray/rayservice.yaml).
RAY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "262144",  # a request is sent again where all of it fits
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# Of a cluster of this machine alone: what its processes say to each other goes over loopback.
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class Platform(StrEnum):
    """What deploys."""

    RAY = "ray"


def deploy(platform: Platform, max_replicas: int | None, **flags: Any) -> None:
    """Deploy --replicas of the server on Ray: to RAY_ADDRESS's cluster, or to one of this machine,
    until interrupted. Needs bert-lora-server[ray].
    """
    here = {} if "RAY_ADDRESS" in os.environ else ALONE
    for name, value in (RAY | here).items():
        os.environ.setdefault(name, value)
    try:
        from app.ray_serve import run
    except ImportError as error:
        typer.echo(
            f"bert-lora: {platform} is missing ({error}): pip install 'bert-lora-server[ray]'",
            err=True,
        )
        raise typer.Exit(1) from None
    from app.assemble import StartRefused

    try:
        run(read_settings(flags), max_replicas)
    except (SettingsRefused, StartRefused) as error:
        typer.echo(f"bert-lora: {error}", err=True)
        raise typer.Exit(2) from None


_POSITION, _KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
_MOST = typer.Option(
    None, min=1, help="Up to so many, by how full their queues are.", show_default=False
)
deploy.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter("platform", _POSITION, default=typer.Argument(), annotation=Platform),
        inspect.Parameter("max_replicas", _KEYWORD, default=_MOST, annotation=int | None),
        *FLAGS,
    ]
)
