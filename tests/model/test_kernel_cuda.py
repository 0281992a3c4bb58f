"""The GPU's kernels: in Triton's interpreter on any machine, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from app.adapters.values import Adapter, LoRALayer, laid_out
from app.model.delta import Members, add_delta, gather, unmerged_layers

pytest.importorskip("triton")
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
from app.model import kernel_cuda  # noqa: E402

PATHS = ["l.0.self.query", "l.0.self.key", "l.0.output.dense"]  # an odd number of them
IN, OUT = 72, 100
SHAPES = [(OUT, IN), (64, 48), (48, 64)]


def drawn(seed: int, rank: int, extras: bool) -> Adapter:
    """One of three layers IN -> OUT, in float32 on the tests' device."""
    rng = torch.Generator().manual_seed(seed)
    parts = [
        torch.randn(*shape, generator=rng) for shape in ((rank, IN), (OUT, rank), (OUT,), (OUT,))
    ]
    layer = LoRALayer(*parts[:2], *(parts[2:] if extras else (None, None)))
    return laid_out(Adapter({PATHS[seed % 3]: layer}, "peft", 1.0), DEVICE, torch.float32)


@pytest.fixture(autouse=True)
def plain_numpy() -> Iterator[None]:
    with torch.inference_mode():
        yield


def member(number: int) -> Members:
    return Members((PATHS[number],), np.array([number]), np.array([0, OUT]))


@settings(max_examples=15, deadline=None)
@given(
    counts=st.lists(st.sampled_from([1, 2, 31, 32, 33, 70]), min_size=1, max_size=5)
    | st.just([1] * 20),
    ranks=st.lists(st.sampled_from([0, 1, 8, 16, 17, 256]), min_size=20, max_size=20),
    plain=st.integers(0, 20),
    extras=st.booleans(),
)
def test_the_kernels_give_what_torch_gives_segment_by_segment(
    counts: list[int], ranks: list[int], plain: int, extras: bool
) -> None:
    layers = [unmerged_layers(drawn(i, ranks[i], extras), PATHS) for i in range(len(counts))]
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    segments = [
        (slice(end - n, end), one)
        for i, (end, n, one) in enumerate(zip(ends, counts, layers, strict=True))
        if i != plain
    ]
    x, y = (torch.randn(ends[-1], n).to(DEVICE) for n in (IN, OUT))
    by_torch = gather(segments, kernels_on=None)
    as_tables = gather(segments, kernels_on=torch.device("cpu"))
    for number in range(len(PATHS)):
        wanted = add_delta(y.clone(), x, by_torch, member(number))
        got = y.clone()
        if as_tables.rows is not None and as_tables.table is not None:
            plan = kernel_cuda.plan(as_tables.rows, as_tables.table, DEVICE)
            kernel_cuda.add_updates(got, x, plan, number)
        assert_close(got, wanted, rtol=1e-5, atol=1e-3)
        for end, n in (
            (e, n) for i, (e, n) in enumerate(zip(ends, counts, strict=True)) if i == plain
        ):
            assert torch.equal(got[end - n : end], y[end - n : end])


def test_operands_that_begin_anywhere_in_memory_are_read_right() -> None:
    """The compiled kernels take x and y for aligned: what is not is copied."""
    layers = unmerged_layers(drawn(0, 8, extras=True), PATHS)
    updates = gather([(slice(0, 5), layers)], kernels_on=torch.device("cpu"))
    assert updates.rows is not None and updates.table is not None
    plan = kernel_cuda.plan(updates.rows, updates.table, DEVICE)
    x, y = (torch.randn(5 * n + 1).to(DEVICE)[1:].view(5, n) for n in (IN, OUT))
    assert x.data_ptr() % kernel_cuda.LOAD_BYTES and y.data_ptr() % kernel_cuda.LOAD_BYTES
    wanted = add_delta(y.clone(), x, gather([(slice(0, 5), layers)], kernels_on=None), member(0))
    kernel_cuda.add_updates(y, x, plan, 0)
    assert_close(y, wanted, rtol=1e-5, atol=1e-3)


def test_a_layer_that_no_adapter_of_the_batch_changes_launches_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched: list[int] = []
    monkeypatch.setattr(
        kernel_cuda, "add_updates", lambda y, x, plan, number: launched.append(number)
    )
    monkeypatch.setattr(kernel_cuda, "to_device", lambda tensor, _: tensor.to(DEVICE))
    layers = unmerged_layers(drawn(1, 8, extras=False), PATHS)
    updates = gather([(slice(0, 4), layers)], kernels_on=torch.device("cuda"))
    x, y = torch.randn(4, IN), torch.randn(4, OUT)
    for number in range(len(PATHS)):
        add_delta(y, x, updates, member(number))
    assert launched == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_check_at_start_lets_the_kernels_through(dtype: torch.dtype) -> None:
    if not ON_GPU and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies with numpy, which has no bfloat16")
    assert kernel_cuda.why_not(DEVICE, dtype, SHAPES) is None


def test_the_check_at_start_notices_a_wrong_kernel_and_one_that_cannot_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(y: Tensor, *_: object) -> None:
        y += 1

    def infinite(y: Tensor, *_: object) -> None:
        y[5:] /= 0

    def broken(*_: object) -> None:
        raise RuntimeError("no such architecture\nand a page of advice")

    for instead, why in (
        (wrong, "off by"),
        (infinite, "off by"),
        (broken, r"(no such architecture), torch"),
    ):
        monkeypatch.setattr(kernel_cuda, "add_updates", instead)
        assert why in (kernel_cuda.why_not(DEVICE, torch.float32, SHAPES) or "")


def test_the_check_at_start_runs_the_bases_own_shapes_and_so_compiles_all_that_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, shapes = kernel_cuda.add_updates, set()

    def noted(y: Tensor, x: Tensor, *rest: Any) -> None:
        shapes.add((y.shape[1], x.shape[1]))
        run(y, x, *rest)

    monkeypatch.setattr(kernel_cuda, "add_updates", noted)
    assert kernel_cuda.why_not(DEVICE, torch.float32, SHAPES) is None
    assert shapes == set(SHAPES)
