"""A trial ends where it does not fit a name's new version, and not where that cannot be told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from app.adapters.refusals import AdapterRejected
from app.catalog.fitting import with_fitting_trial
from app.catalog.pointer import Pointer, Trial
from app.catalog.store import StoreUnavailable

TRIED = Pointer("x", "1" * 64, 3, trial=Trial("canary", "2" * 64, 10))
HEAD = SimpleNamespace(task="classify", has_head=True)


def kept(loaded: Exception | Any) -> bool:
    """Whether the trial stays, where its version is loaded so."""

    async def load_stored(_: str) -> Any:
        if isinstance(loaded, Exception):
            raise loaded
        return SimpleNamespace(report=loaded)

    fetcher: Any = SimpleNamespace(load_stored=load_stored)
    report: Any = HEAD
    return asyncio.run(with_fitting_trial(fetcher, TRIED, report)).trial is not None


def test_a_trial_stays_where_it_answers_in_the_same_shape() -> None:
    assert kept(HEAD)
    assert not kept(SimpleNamespace(task="embed", has_head=False))
    assert not kept(AdapterRejected("its files are lost"))


def test_a_store_that_does_not_answer_ends_no_trial() -> None:
    with pytest.raises(StoreUnavailable):
        kept(StoreUnavailable("the store does not answer"))
