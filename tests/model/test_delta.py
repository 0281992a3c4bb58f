"""The segmented low-rank product against a hand merge in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from app.adapters.values import Adapter, LoRALayer, laid_out
from app.model.delta import Members, add_delta, gather, unmerged_layers
from app.model.linear import FrozenLinear

PATHS = ["l.0.self.query", "l.0.self.key", "l.0.self.value", "l.0.output.dense"]
Shape = tuple[int, int]  # inputs and outputs of a Linear
# What fills vectors of 8 or 16 and tiles of them, what fills none, and what has something left over.
SHAPES: list[Shape] = [(24, 20), (5, 3), (64, 192), (33, 150)]


def member(*numbers: int, out: int = 20) -> Members:
    """Of Linears with so many columns each."""
    paths = tuple(PATHS[number] for number in numbers)
    return Members(paths, np.array(numbers), out * np.arange(len(numbers) + 1))


def random_adapter(
    seed: int, ranks: dict[str, int], extras: bool, shape: Shape = SHAPES[0]
) -> Adapter:
    """extras: a gain and a shift as well."""
    inputs, out = shape
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    layers = {
        path: LoRALayer(
            draw(rank, inputs),
            draw(out, rank),
            draw(out) if extras else None,
            draw(out) if extras else None,
        )
        for path, rank in ranks.items()
    }
    return laid_out(Adapter(layers, "peft", 1.0), torch.device("cpu"), torch.float32)


def by_hand(y: Tensor, x: Tensor, rows: slice, lora: LoRALayer) -> Tensor:
    """gain * y + shift + x (B A).T in float64."""
    out = y.double().clone()
    if lora.gain is not None:
        out[rows] *= lora.gain.double()
    if lora.shift is not None:
        out[rows] += lora.shift.double()
    out[rows] += x[rows].double() @ (lora.B.double() @ lora.A.double()).T
    return out.float()


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    ranks=st.lists(st.integers(0, 9) | st.just(256), min_size=4, max_size=4),
    which=st.sets(st.sampled_from(PATHS), min_size=1),
    plain=st.integers(0, 4),
    extras=st.booleans(),
    compiled=st.booleans(),
    shape=st.sampled_from(SHAPES),
)
def test_each_segment_gets_its_own_update_and_the_others_none(
    counts: list[int],
    ranks: list[int],
    which: set[str],
    plain: int,
    extras: bool,
    compiled: bool,
    shape: Shape,
) -> None:
    """Through the compiled kernel and through its twin in torch."""
    chosen = {p: r for p, r in zip(PATHS, ranks, strict=True) if p in which}
    adapters = [random_adapter(i, chosen, extras, shape) for i in range(len(counts))]
    inputs, out = shape
    layers = [unmerged_layers(a, PATHS) for a in adapters]
    assert all(one.table is not None for one in layers)
    if not compiled:
        layers = [replace(one, table=None) for one in layers]
    x = torch.randn(sum(counts), inputs, generator=torch.Generator().manual_seed(1))
    y = torch.randn(sum(counts), out, generator=torch.Generator().manual_seed(2))
    starts = [sum(counts[:i]) for i in range(len(counts))]
    rows = [slice(s, s + n) for s, n in zip(starts, counts, strict=True)]
    updates = gather([(rows[i], layers[i]) for i in range(len(counts)) if i != plain])
    together = add_delta(y.repeat(1, 3), x, updates, member(0, 1, 3, out=out))
    for number, path in enumerate(PATHS):
        got = add_delta(y.clone(), x, updates, member(number, out=out))
        if number != 2:
            place = [0, 1, 3].index(number)
            assert torch.equal(together[:, out * place :][:, :out], got)
        wanted = y
        for i, adapter in enumerate(adapters):
            if i != plain and path in chosen:
                wanted = by_hand(wanted, x, rows[i], adapter.layers[path])
        assert_close(got, wanted, rtol=1e-5, atol=1e-4 * (1 + max(ranks) / 16))
        if plain < len(counts):
            assert torch.equal(got[rows[plain]], y[rows[plain]])


def test_half_precision_is_computed_in_float32_and_leaves_other_rows_their_bits() -> None:
    layers = unmerged_layers(random_adapter(0, {PATHS[0]: 7}, extras=True), PATHS)
    x, y = torch.randn(50, 24).bfloat16(), torch.randn(50, 20).bfloat16()
    rows = (slice(10, 20), slice(30, 35))
    got = y.clone()
    for number in range(len(PATHS)):
        add_delta(got, x, gather([(r, layers) for r in rows]), member(number))
    wanted = y.float()
    for r in rows:
        wanted = by_hand(wanted, x, r, layers.updates[PATHS[0]])
    assert torch.equal(got[:10], y[:10])
    assert torch.equal(got[20:30], y[20:30])
    assert_close(got, wanted.bfloat16(), rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_updated_rows_bits_do_not_depend_on_the_rows_beside_it(shape: Shape) -> None:
    layers = unmerged_layers(random_adapter(0, {PATHS[0]: 7}, extras=True, shape=shape), PATHS)
    x, y = torch.randn(50, shape[0]), torch.randn(50, shape[1])
    members = member(0, out=shape[1])
    whole = add_delta(y.clone(), x, gather([(slice(0, 50), layers)]), members)
    for start, stop in ((0, 1), (3, 5), (7, 50), (49, 50), (10, 13)):
        rows = slice(start, stop)
        alone = gather([(slice(0, stop - start), layers)])
        part = add_delta(y[rows].clone(), x[rows].clone(), alone, members)
        assert torch.equal(part, whole[rows]), rows


def test_a_frozen_linear_is_the_plain_one_with_bits_that_ignore_the_batch() -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(96, 384), torch.randn(96), torch.randn(700, 384)
    frozen = FrozenLinear(weight, bias)
    whole = frozen(x)
    assert_close(whole, F.linear(x, weight, bias), rtol=1e-5, atol=1e-4)
    for count in (1, 2, 3, 7, 16, 33, 250, 600):
        assert torch.equal(frozen(x[5 : 5 + count]), whole[5 : 5 + count]), count


def test_a_packed_copy_that_differs_from_its_weight_is_noticed() -> None:
    weight = torch.randn(16, 32)
    frozen = FrozenLinear(weight, None)
    assert frozen.intact()
    if frozen.packed is not None:
        weight[3, 3] += 1
        assert not frozen.intact()
