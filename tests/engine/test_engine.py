"""One bad sequence fails alone; the loop goes on."""

from __future__ import annotations

import asyncio

import pytest
import torch

from app.engine.engine import Ask, Engine
from app.engine.tokenizer import Tokens
from app.model.batch import Item, Want


class FailingEncoder:
    """Gives each sequence its length; fails for any batch that holds token 13."""

    max_length = 100

    def run(self, items: list[Item]) -> list[torch.Tensor]:
        if any(13 in item.ids for item in items):
            raise RuntimeError("unlucky")
        return [torch.tensor([float(len(item.ids))]) for item in items]


def ask(*ids: int) -> Ask:
    return Ask(Tokens(list(ids), [0] * len(ids)), Want("embedding"), None)


def test_a_sequence_that_fails_takes_no_other_of_its_batch_with_it() -> None:
    async def run() -> list[object]:
        engine = Engine(FailingEncoder(), 1000, 1000)  # type: ignore[arg-type]
        asks = [[ask(1, 2)], [ask(13)], [ask(1), ask(1, 2, 3)]]
        waiting = [asyncio.create_task(engine.run(a)) for a in asks]
        await asyncio.sleep(0)
        engine.start()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        again = await engine.run([ask(5, 6, 7, 8)])
        assert engine.turning
        await asyncio.to_thread(engine.stop)
        assert not engine.turning
        return [*found, again]

    first, failed, both, again = asyncio.run(run())
    assert [r.item() for r in first.rows] == [2]  # type: ignore[attr-defined]
    assert isinstance(failed, RuntimeError)
    assert [r.item() for r in both.rows] == [1, 3]  # type: ignore[attr-defined]
    assert [r.item() for r in again.rows] == [4]  # type: ignore[attr-defined]


def test_a_call_runs_on_the_models_thread_and_its_error_comes_back() -> None:
    async def run() -> None:
        engine = Engine(FailingEncoder(), 1000, 1000)  # type: ignore[arg-type]
        engine.start()
        assert await engine.call(lambda: 41 + 1) == 42
        with pytest.raises(ZeroDivisionError):
            await engine.call(lambda: 1 / 0)
        await asyncio.to_thread(engine.stop)

    asyncio.run(run())
