"""The segmented low-rank product against a hand merge in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from app.adapters.adapter import Adapter, LoRALayer
from app.model.delta import Shrunk, add_delta, unmerged_layers
from app.model.linear import FrozenLinear

PATHS = ["l.0.self.query", "l.0.self.key", "l.0.self.value", "l.0.output.dense"]


def random_adapter(seed: int, ranks: dict[str, int], width: int = 24) -> Adapter:
    rng = torch.Generator().manual_seed(seed)
    layers = {
        path: LoRALayer(
            torch.randn(rank, width, generator=rng), torch.randn(width, rank, generator=rng)
        )
        for path, rank in ranks.items()
    }
    return Adapter(layers, "peft", 1.0)


def by_hand(y: Tensor, x: Tensor, rows: slice, lora: LoRALayer) -> Tensor:
    """y + x (B A).T in float64."""
    out = y.double().clone()
    out[rows] += x[rows].double() @ (lora.B.double() @ lora.A.double()).T
    return out.float()


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    ranks=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    which=st.sets(st.sampled_from(PATHS), min_size=1),
    plain=st.integers(0, 4),
)
def test_each_segment_gets_its_own_update_and_the_others_none(
    counts: list[int], ranks: list[int], which: set[str], plain: int
) -> None:
    chosen = {p: r for p, r in zip(PATHS, ranks, strict=True) if p in which}
    adapters = [random_adapter(i, chosen) for i in range(len(counts))]
    layers = [unmerged_layers(a) for a in adapters]
    x = torch.randn(sum(counts), 24, generator=torch.Generator().manual_seed(1))
    y = torch.randn(sum(counts), 24, generator=torch.Generator().manual_seed(2))
    starts = [sum(counts[:i]) for i in range(len(counts))]
    rows = [slice(s, s + n) for s, n in zip(starts, counts, strict=True)]
    shrunk = Shrunk()
    for path in sorted(which):  # neighbours share what the first of them shrank
        updates = [(rows[i], layers[i].updates[path]) for i in range(len(counts)) if i != plain]
        got = add_delta(y.clone(), x, updates, shrunk)
        wanted = y
        for i, adapter in enumerate(adapters):
            if i != plain:
                wanted = by_hand(wanted, x, rows[i], adapter.layers[path])
        assert_close(got, wanted, rtol=1e-5, atol=1e-4)
        if plain < len(counts):
            assert torch.equal(got[rows[plain]], y[rows[plain]])


def test_another_input_is_shrunk_anew() -> None:
    adapter = random_adapter(0, {PATHS[0]: 3})
    update = unmerged_layers(adapter).updates[PATHS[0]]
    shrunk, zero = Shrunk(), torch.zeros(5, 24)
    first, second = torch.randn(5, 24), torch.randn(5, 24)
    add_delta(zero.clone(), first, [(slice(0, 5), update)], shrunk)
    got = add_delta(zero.clone(), second, [(slice(0, 5), update)], shrunk)
    assert_close(got, by_hand(zero, second, slice(0, 5), adapter.layers[PATHS[0]]))


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
