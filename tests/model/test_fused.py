"""A Linear's product and all updates in one launch: in Triton's interpreter on any machine, and on
a GPU where there is one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from app.adapters.values import LoRALayer

pytest.importorskip("triton")
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
from app.model import fused, kernel_cuda  # noqa: E402
from app.model.batch import NOTHING  # noqa: E402
from app.model.delta import Updates  # noqa: E402
from app.model.forward_pass import Pass  # noqa: E402
from app.model.fused import Fused  # noqa: E402
from app.model.kernel import FIELDS, entry_of  # noqa: E402
from app.model.kernel_cuda import Plan  # noqa: E402
from app.model.linears import Linears  # noqa: E402
from app.model.lora import LinearWithLoRA  # noqa: E402
from app.model.tiles import TILES, Card, Tile, tile_of, tiles_for  # noqa: E402

IN, WIDTH = 64, 80
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
EVERY_TILE = [(dtype, tile) for dtype in DTYPES for tile in TILES[dtype.itemsize]]
Rows = Sequence[tuple[int, int]]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def linear(dtype: torch.dtype, members: int = 1) -> Fused:
    out = members * WIDTH
    return Fused(draw(0, out, IN, dtype=dtype) / 8, draw(1, out, dtype=dtype), members)


def layer(seed: int, rank: int, dtype: torch.dtype, rescales: bool = False) -> LoRALayer:
    """Laid out as values.laid_out does it; both matrices of about x's own size."""
    A = draw(seed, rank, IN, dtype=dtype) / 8
    B = draw(seed + 1, rank, WIDTH, dtype=dtype) / max(rank, 1) ** 0.5
    more = [draw(seed + i, WIDTH, dtype=dtype) for i in (2, 3)] if rescales else [None, None]
    return LoRALayer(A, B.T, *more)


def plan_of(rows: Rows, layers: Sequence[Sequence[LoRALayer]]) -> Plan:
    """layers: of each Linear, one a segment. They have to live longer than the plan."""
    table = np.array([[entry_of(one) for one in each] for each in layers], np.int64)
    return kernel_cuda.plan(
        np.array(rows, np.int64), table.reshape(len(layers), -1, FIELDS), DEVICE
    )


def exact(x: Tensor, of: Fused, rows: Rows, layers: Sequence[Sequence[LoRALayer]]) -> Tensor:
    """y in float64, segment by segment: gain * (x @ W.T + bias) + shift + (x @ A.T) @ B.T."""
    y = x.double() @ of.weight.double().T + of.bias.double()
    for m, each in enumerate(layers):
        columns = y[:, m * WIDTH : (m + 1) * WIDTH]
        for (start, stop), one in zip(rows, each, strict=True):
            if one.gain is not None:
                columns[start:stop] *= one.gain.double()
            if one.shift is not None:
                columns[start:stop] += one.shift.double()
            columns[start:stop] += x[start:stop].double() @ one.A.double().T @ one.B.double().T
    return y


def assert_right(y: Tensor, wanted: Tensor) -> None:
    assert y.isfinite().all()
    assert (y.double() - wanted).abs().max() <= TOLERANCE[y.dtype] * wanted.abs().max()


@pytest.mark.parametrize(("dtype", "tile"), EVERY_TILE, ids=str)
def test_any_ranks_on_any_rows_are_as_in_float64(dtype: torch.dtype, tile: Tile) -> None:
    rows = [(3, 40), (40, 41), (41, 110), (120, 123), (123, 200)]
    layers = [[layer(10 * i, rank, dtype, i % 2 == 0)] for i, rank in enumerate((8, 1, 256, 0, 17))]
    layers = [[one for each in layers for one in each]]
    x = draw(5, 210, IN, dtype=dtype)
    of = linear(dtype)
    y = of.through(tile, x, plan_of(rows, layers), 0)
    assert_right(y, exact(x, of, rows, layers))


MIXED = [(1, 3, 64, 1), (65, 2, 70), (31, 33, 64, 1, 5), (1,) * 20]


@pytest.mark.parametrize("counts", MIXED, ids=str)
def test_segments_of_one_row_and_of_many_are_as_in_float64(counts: tuple[int, ...]) -> None:
    """The second's rows are the base's."""
    ends = np.cumsum(counts).tolist()
    rows = [(e - n, e) for i, (e, n) in enumerate(zip(ends, counts, strict=True)) if i != 1]
    ranks = itertools.cycle((8, 0, 1, 17, 9))
    layers = [[layer(10 * i, next(ranks), torch.float32, i % 3 == 0) for i in range(len(rows))]]
    x, of = draw(5, ends[-1] + 3, IN), linear(torch.float32)
    y = of.through(of.tiles[-1], x, plan_of(rows, layers), 0)
    assert_right(y, exact(x, of, rows, layers))
    start, plain = counts[0], of.through(of.tiles[-1], x, None, 0)
    assert torch.equal(y[start : start + counts[1]], plain[start : start + counts[1]])


def test_linears_of_one_product_have_each_its_own_updates() -> None:
    rows = [(0, 5), (5, 70)]
    layers = [
        [layer(100 * m + 10 * i, 8 - m, torch.float32, m == 1) for i in range(2)] for m in range(3)
    ]
    plan = plan_of(rows, [layers[0], *layers])  # the product's first Linear is the second of all
    x, of = draw(5, 90, IN), linear(torch.float32, members=3)
    narrow = replace(of.tiles[-1], columns=16)  # a tile is of one Linear
    assert_right(of.through(narrow, x, plan, 1), exact(x, of, rows, layers))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_rows_bits_ignore_tiles_neighbours_and_their_updates(dtype: torch.dtype) -> None:
    """On a card; an interpreter adds up in numpy's order, which goes by the tile."""
    rows = [(10, 30), (30, 60), (60, 133), (133, 150)]
    layers = [[layer(10 * i, rank, dtype) for i, rank in enumerate((3, 8, 20, 8))]]
    x, of = draw(5, 160, IN, dtype=dtype), linear(dtype)
    plan, alone = plan_of(rows, layers), plan_of([(2, 75)], [layers[0][2:3]])
    forms = of.tiles if ON_GPU else of.tiles[-1:]
    whole = of.through(forms[0], x, plan, 0)
    plain = of.through(forms[0], x, None, 0)
    for tile in forms:
        assert torch.equal(of.through(tile, x, plan, 0), whole)
        assert torch.equal(of.through(tile, x, None, 0)[:10], whole[:10])
        assert torch.equal(of.through(tile, x, None, 0), plain)
        if ON_GPU:
            assert torch.equal(of.through(tile, x[58:133], alone, 0)[2:], whole[60:133])


@pytest.mark.parametrize("bulk", [False, True])
def test_tiles_that_come_in_bulk_are_the_same(bulk: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(3, 40), (40, 41), (41, 110)]
    layers = [[layer(10 * i, rank, torch.float32, True) for i, rank in enumerate((8, 40, 0))]]
    x, of = draw(5, 111, IN), linear(torch.float32)
    of.card = replace(of.card, bulk=bulk)
    y = of.through(of.tiles[-1], x, plan_of(rows, layers), 0)
    assert_right(y, exact(x, of, rows, layers))


def test_rows_that_begin_anywhere_in_memory_are_read_right() -> None:
    of, rows = linear(torch.float32), [(0, 5)]
    layers = [[layer(0, 8, torch.float32)]]
    x = draw(5, 5 * IN + 1)[1:].view(5, IN)
    assert x.data_ptr() % kernel_cuda.LOAD_BYTES
    assert_right(of(x, plan_of(rows, layers), 0), exact(x, of, rows, layers))


def test_many_adapters_on_few_rows_are_launched_apart_and_the_bases_rows_keep_their_bits() -> None:
    rows = [(i, i + 1) for i in range(20)]
    layers = [[layer(100 * m + i, 8, torch.float32, i == 3) for i in range(20)] for m in range(2)]
    x, plan = draw(5, 30, IN), plan_of(rows, layers)
    modules = [torch.nn.Linear(IN, WIDTH, device=DEVICE) for _ in range(2)]
    product = Linears([LinearWithLoRA(one, str(m), m) for m, one in enumerate(modules)])
    assert product.frozen.weight is not None
    of = product.fused = Fused(product.frozen.weight, product.frozen.bias, 2)
    assert plan.crowd[0] > fused.APART and not of.takes(plan, 0)
    updates = Updates(plan=plan, touched=np.ones(2, bool))
    y, alone = (
        torch.cat(list(product.rows(running, x[None])), -1)[0]
        for running in (Pass(NOTHING, updates=updates), Pass(NOTHING))
    )
    assert_right(y, exact(x, of, rows, layers))
    assert torch.equal(y[20:], alone[20:])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_another_adapters_infinite_numbers_stay_in_its_own_rows() -> None:
    """As far as x goes: B is refused at upload where it is infinite."""
    rows, x, of = [(0, 20), (20, 50)], draw(5, 64, IN), linear(torch.float32)
    bad, good = layer(0, 8, torch.float32), layer(10, 8, torch.float32)
    bad.A[:] = float("inf")
    y = of(x, plan_of(rows, [[bad, good]]), 0)
    assert not y[:20].isfinite().all()
    assert_right(y[20:50], exact(x, of, rows[1:], [[good]])[20:50])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_widest_tile_that_fills_the_card_is_taken(dtype: torch.dtype) -> None:
    h100, a10 = Card(132, 227 << 10, True), Card(72, 99 << 10, False)
    wide = tiles_for(h100, dtype)
    assert wide == TILES[dtype.itemsize]
    small = tiles_for(a10, dtype)
    assert small and set(small) <= {tile for tile in wide if not tile.wide}
    assert tiles_for(Card(40, 16 << 10, False), dtype) == ()
    few, many = (tile_of(wide, h100, rows, 768, 768, 12.0) for rows in (32, 16384))
    assert few == wide[-1] and many == wide[0]
    if dtype != torch.float32:
        crowded = tile_of(wide, h100, 16384, 768, 768, 24.0)
        assert crowded.rows == 128 and crowded.sums > many.sums
        assert tile_of(wide, h100, 16384, 384, 384, 24.0).columns == 128


def test_what_has_no_updates_goes_to_cublas_only_where_its_bits_are_the_same() -> None:
    asked: list[int] = []
    of = Fused(draw(0, WIDTH, IN), draw(1, WIDTH), plain=True)
    of.through = lambda tile, x, plan, number: asked.append(len(x)) or x  # type: ignore
    rows = fused.PLAIN_ROWS[0]
    for x in (draw(2, rows, IN), draw(2, rows - 1, IN)):
        of(x, None, 0)
    assert asked == [rows - 1]


def chosen(monkeypatch: pytest.MonkeyPatch, one: float, three: float) -> frozenset[tuple[int, int]]:
    times = iter([one, three] * 10)
    monkeypatch.setattr(fused, "TIMED", ((40, 2), (70, 3)))
    if not ON_GPU:
        monkeypatch.setattr(fused, "clock", lambda run: (run(), next(times))[1])
    shapes, why = fused.chosen(DEVICE, torch.float32, [(128, 64), (100, 64), (64, 40)])
    assert why is None
    return shapes


@pytest.mark.skipif(ON_GPU, reason="a card has its own times")
def test_one_launch_serves_where_it_is_faster_and_its_tiles_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert chosen(monkeypatch, one=1.0, three=2.0) == {(128, 64)}
    assert chosen(monkeypatch, one=2.0, three=1.0) == set()


def test_a_product_that_is_wrong_or_does_not_run_is_told_and_not_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = Fused.through

    def wrong(self: Fused, *given: object) -> Tensor:
        return right(self, *given) + 1  # type: ignore[arg-type]

    def follows_the_batch(self: Fused, tile: Tile, x: Tensor, plan: Plan | None, n: int) -> Tensor:
        return right(self, tile, x, plan, n) * (1 + 1e-6 * (plan is None))

    def broken(*_: object) -> Tensor:
        raise RuntimeError("no such architecture\nand a page of advice")

    for instead, why in (
        (wrong, "off by"),
        (follows_the_batch, "off by"),
        (broken, "(no such arch"),
    ):
        monkeypatch.setattr(Fused, "through", instead)
        shapes, said = fused.chosen(DEVICE, torch.float32, [(64, 64)])
        assert not shapes and why in (said or "")
