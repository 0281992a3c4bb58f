"""The calls without any server: what a script, or another engine's replica, works with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from app.assemble import assemble
from app.catalog.change import Change
from app.catalog.local_store import LocalStore
from app.inference.metrics import Metrics
from app.inference.runtime import Runtime
from app.settings import Settings
from tests.oracles import make_adapter

T = TypeVar("T")


@dataclass(frozen=True)
class Script:
    """A loop of its own, and a runtime with the adapters sentiment (an embedder) and rank (one
    label).
    """

    runtime: Runtime
    base: Path
    folders: dict[str, Path]
    loop: asyncio.AbstractEventLoop

    def run(self, call: Awaitable[T]) -> T:
        """What the call answers, or raises."""
        return self.loop.run_until_complete(asyncio.wait_for(call, 60))

    def call(self, function: Callable[..., Awaitable[Any]], *arguments: Any, **named: Any) -> Any:
        """run() of function(runtime, …)."""
        return self.run(function(self.runtime, *arguments, **named))


@pytest.fixture(scope="module")
def script(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Script]:
    """Made once for a module's tests, which change nothing."""
    folder = tmp_path_factory.mktemp("script")
    folders = {
        "sentiment": make_adapter(tiny_bert, folder / "adapters" / "sentiment", 1),
        "rank": make_adapter(tiny_bert, folder / "adapters" / "rank", 2, labels=1),
    }
    settings = Settings(model=str(tiny_bert), store=folder / "store", max_client_batch=8)
    runtime, installer = assemble(settings, Metrics(), LocalStore(Path(settings.store)))
    runtime.engine.start()
    loop = asyncio.new_event_loop()
    made = Script(runtime, tiny_bert, folders, loop)
    for name, source in folders.items():
        made.run(installer.install_folder(name, source, Change("folder")))
    yield made
    runtime.engine.stop()
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
