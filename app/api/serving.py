"""What every route works with, put together once by assemble.py and held by the app, never by a module."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from app.api.draining import Drain
from app.api.metrics import Metrics
from app.catalog.fetch import Fetcher
from app.catalog.install import Installer
from app.catalog.registry import Registry
from app.engine.engine import Engine
from app.engine.tokenizer import TextTokenizer
from app.inference.quota import Quotas


@dataclass(frozen=True)
class Serving:
    """max_client_batch: inputs of one request. keyed: whether any key is needed for anything.

    shadows: comparisons that are running. verifier: one thread, so that who has the weights read again
    takes no thread from others and waits for whoever asked before.
    """

    engine: Engine
    tokenizer: TextTokenizer
    registry: Registry
    fetcher: Fetcher
    installer: Installer
    metrics: Metrics
    max_client_batch: int
    keyed: bool
    drain: Drain
    quotas: Quotas = field(default_factory=Quotas)
    shadows: set[asyncio.Task[None]] = field(default_factory=set)
    verifier: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "verify"))


async def _serving(request: Request) -> Serving:
    """async: FastAPI runs a plain function in a thread, which takes longer than all of this route."""
    found: Serving = request.app.state.serving
    return found


Served = Annotated[Serving, Depends(_serving)]
