"""What a call works with: the model's engine, the tokenizer, the names. Knows no HTTP."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from app.adapters.sentence import Sentence
from app.catalog.compositions import Compositions
from app.catalog.fetch import Fetcher
from app.catalog.names import Names
from app.catalog.registry import Registry
from app.engine.engine import Engine
from app.engine.tokenizer import TextTokenizer
from app.inference.metrics import Metrics
from app.inference.quota import Quotas
from app.inference.tasks import Tasks
from app.model.version import Version

STATES_AT_ONCE = 2


@dataclass(frozen=True, eq=False)
class Runtime:
    """max_inputs: of one call. shadows: comparisons that are running. token_states: whoever asks
    for these holds it until the answer is written: their memory is STATES_AT_ONCE times the
    largest answer (states.py). Used from one event loop.
    """

    engine: Engine
    tokenizer: TextTokenizer
    registry: Registry
    fetcher: Fetcher
    names: Names
    compositions: Compositions
    metrics: Metrics
    max_inputs: int
    tasks: Tasks = field(default_factory=dict)
    quotas: Quotas = field(default_factory=Quotas)
    shadows: set[asyncio.Task[None]] = field(default_factory=set)
    token_states: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(STATES_AT_ONCE)
    )

    def sentence(self, version: Version) -> Sentence:
        """How the version makes vectors: its own word, then the base's."""
        return self.engine.encoder.sentence(version.adapter)
