"""Packed equals one by one, for any split into batches."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from app.catalog.load import load_version, make_loader
from app.engine.engine import Engine
from app.engine.tokenizer import load_tokenizer
from app.model.base_files import find_base
from app.model.encoder import Encoder
from app.model.load_encoder import load_encoder
from app.model.sequence import Sequence, Want
from app.model.version import Version
from tests.oracles import make_adapter


@dataclass(frozen=True, repr=False)  # hypothesis prints what a test got: not a whole model, please
class Served:
    encoder: Encoder
    versions: list[Version]


@pytest.fixture(scope="module")
def served(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The tiny BERT, and: no adapter, two that embed, one with a head."""
    root = tmp_path_factory.mktemp("batch")
    files = find_base(str(tiny_bert), None)
    encoder = load_encoder(files, torch.device("cpu"), torch.float32)
    tokenizer = load_tokenizer(files.folder, encoder.vocabulary, encoder.type_vocabulary)
    folders = [
        make_adapter(tiny_bert, root / "a", 1, scale=4),
        make_adapter(tiny_bert, root / "b", 2, r=3, target_modules=["dense", "key"], scale=4),
        make_adapter(tiny_bert, root / "c", 3, labels=3, scale=4),
    ]

    async def load() -> list[Version]:
        engine = Engine(encoder, 1000, 1000)
        engine.start()
        loader = make_loader(engine, tokenizer)
        found = [
            await load_version(loader, folder, folder.name, {}, allow_noop=False)
            for folder in folders
        ]
        await asyncio.to_thread(engine.stop)
        return found

    return Served(encoder, [encoder.version, *asyncio.run(load())])


sequence = st.tuples(
    st.lists(st.integers(5, 60), min_size=1, max_size=78),
    st.integers(0, 3),
    st.sampled_from(["mean", "cls", "max", "last", "pooler"]),
    st.booleans(),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    asked=st.lists(sequence, min_size=1, max_size=20),
    cuts=st.sets(st.integers(1, 19)),
)
@example(
    asked=[([5] * 9, 0, "mean", False)] * 2, cuts=set()
)  # odd rows, heads of 8: MKL's alignment
def test_packed_equals_one_by_one_for_any_split(
    served: Served, asked: list[tuple[list[int], int, str, bool]], cuts: set[int]
) -> None:
    encoder, versions = served.encoder, served.versions
    sequences = [_sequence(ids, versions[i], pooling, norm) for ids, i, pooling, norm in asked]
    alone = [encoder.run([sequence])[0] for sequence in sequences]
    edges = [0, *sorted(c for c in cuts if c < len(sequences)), len(sequences)]
    split: list[Tensor] = []
    for start, stop in pairwise(edges):
        split += encoder.run(sequences[start:stop])
    together = encoder.run(sequences)
    for sequence, one, cut, whole in zip(sequences, alone, split, together, strict=True):
        assert_close(cut, one, rtol=0, atol=1e-5)
        assert_close(whole, one, rtol=0, atol=1e-5)
        if sequence.version is encoder.version:
            assert torch.equal(cut, one) and torch.equal(whole, one)


def _sequence(ids: list[int], version: Version, pooling: str, normal: bool) -> Sequence:
    labels = version.adapter.head is not None
    want = Want("logits") if labels else Want("embedding", pooling, normal)  # type: ignore[arg-type]
    return Sequence(ids, [0] * len(ids), want, version)
