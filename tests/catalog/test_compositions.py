"""Weighted sums stay within their memory, whoever holds them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from app.adapters.values import Adapter, LoRALayer
from app.catalog.compositions import Compositions, CompositionsFull
from app.model.base_files import find_base
from app.model.delta import BASE_LAYERS
from app.model.encoder import Encoder
from app.model.load_encoder import load_encoder
from app.model.version import Version

PATH = "encoder.layer.0.attention.self.query"
RANK = 8


@pytest.fixture(scope="module")
def encoder(tiny_bert: Path) -> Encoder:
    return load_encoder(find_base(str(tiny_bert), None), torch.device("cpu"), torch.float32)


def version(digest: str) -> Version:
    layer = LoRALayer(torch.randn(RANK, 32), torch.randn(32, RANK))
    return Version(digest, Adapter({PATH: layer}, "peft"), BASE_LAYERS)


BYTES = 4 * RANK * 64


def test_sums_in_use_are_bounded_and_let_go_with_their_requests(encoder: Encoder) -> None:
    async def run() -> None:
        sums = Compositions(encoder, 3 * BYTES)
        a = version("a")
        held = [await sums.get([("a", a, w)]) for w in (0.1, 0.2, 0.3)]
        with pytest.raises(CompositionsFull):
            await sums.get([("a", a, 0.4)])
        assert await sums.get([("a", a, 0.3)]) is held[2]
        held.pop(0)
        assert (await sums.get([("a", a, 0.4)])).adapter.rank == RANK

    asyncio.run(run())


def test_sums_that_nobody_holds_make_room(encoder: Encoder) -> None:
    async def run() -> None:
        sums = Compositions(encoder, 2 * BYTES)
        a = version("a")
        for i in range(20):
            await sums.get([("a", a, i / 100)])
        first = await sums.get([("a", a, 0.19)])
        assert await sums.get([("a", a, 0.19)]) is first

    asyncio.run(run())


def test_one_sum_is_let_in_however_large_it_is(encoder: Encoder) -> None:
    many = [(f"v{i}", version(f"v{i}"), 0.5) for i in range(8)]
    summed = asyncio.run(Compositions(encoder, 1).get(many))
    assert summed.adapter.rank == 8 * RANK
