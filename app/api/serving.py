"""What every route works with, put together once by assemble.py and held by the app, never by a
module.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from app.api.draining import Drain
from app.catalog.install import Installer
from app.inference.runtime import Runtime


@dataclass(frozen=True)
class Serving:
    """keyed: whether any key is needed for anything.

    verifier: one thread, so that who has the weights read again, or an adapter's changes measured,
    takes no thread from others and waits for whoever asked before.
    """

    runtime: Runtime
    installer: Installer
    keyed: bool
    drain: Drain
    verifier: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "verify"))


async def _serving(request: Request) -> Serving:
    """async: FastAPI runs a plain function in a thread, which takes longer than all of this
    route.
    """
    serving: Serving = request.app.state.serving
    return serving


Served = Annotated[Serving, Depends(_serving)]
