"""Few texts by graphs: padded to a bucket, from a table that never moves, with the same answers.

On a machine without a card a graph is the very function that it would capture, run again each time:
attention's stand-ins are test_varlen's, and the kernels run in Triton's interpreter.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

pytest.importorskip("triton")
from app.adapters.values import Adapter, LoRALayer, Norm, laid_out
from app.model import attention, fused, graphs, tiles
from app.model.base_files import find_base
from app.model.batch import Batch, Bucket, Inputs, pack
from app.model.delta import Updates, unmerged_layers
from app.model.encoder import Encoder
from app.model.graphs import Graph, Graphs, graphs_of
from app.model.load_encoder import add_graphs, load_encoder
from app.model.lora import merge_lora
from app.model.sequence import Sequence, Want
from app.model.version import Version
from tests.model.test_varlen import as_documented, in_float32
from tests.tiny import save_tiny_base

ON_CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_CARD else "cpu")
LENGTHS = (7, 3, 12, 5)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(graphs, "TOKENS", (16,))
    monkeypatch.setattr(graphs, "MANY_TOKENS", (32,))
    monkeypatch.setattr(graphs, "SHORT", 8)
    monkeypatch.setattr(graphs, "RANK", 16)
    monkeypatch.setattr(graphs, "TRIED_RANK", 6)
    if not ON_CARD:
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", as_documented)
        monkeypatch.setattr(attention, "efficient_attention", in_float32)
        monkeypatch.setattr(graphs, "capture_on", lambda _: lambda forward: forward)
    with torch.inference_mode():
        yield


def load(kind: str, folder: Path) -> Encoder:
    files = find_base(str(save_tiny_base(kind, folder)), None)
    return load_encoder(files, DEVICE, torch.float32)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load("bert", tmp_path_factory.mktemp("base"))


@pytest.fixture
def plain(loaded: Encoder) -> Encoder:
    """The same base without graphs and without padding."""
    return replace(loaded, graphs=None)


def with_graphs(loaded: Encoder) -> Encoder:
    encoder = replace(loaded, _varlen=True)
    encoder.graphs = Graphs(encoder)
    return encoder


@pytest.fixture
def graphed(loaded: Encoder) -> Encoder:
    return with_graphs(loaded)


def version(encoder: Encoder, seed: int, rank: int = 5, **more: Any) -> Version:
    """Of every other Linear, gains and shifts with every fourth; large enough to be seen."""
    rng = torch.Generator().manual_seed(seed)
    layers = {}
    for i, (path, wrapper) in enumerate(encoder.wrappers.items()):
        out, in_ = wrapper.linear.weight.shape
        A, B, gain, shift = (
            torch.randn(*size, generator=rng) for size in ((rank, in_), (out, rank), (out,), (out,))
        )
        if i % 2 == seed % 2:
            layers[path] = LoRALayer(A, B * 0.2, *([gain, shift] if i % 4 < 2 else [None, None]))
    adapter = laid_out(Adapter(layers, "peft", **more), encoder.device, encoder.dtype)
    return Version(str(seed), adapter, unmerged_layers(adapter, list(encoder.wrappers)))


def dealt(
    through: list[Version], lengths: tuple[int, ...] = LENGTHS, want: str = "embedding"
) -> list[Sequence]:
    rng = torch.Generator().manual_seed(sum(lengths))
    return [
        Sequence(
            torch.randint(4, 60, (n,), generator=rng).tolist(),
            [0] * n,
            Want(want, normalize=False),  # type: ignore[arg-type]
            through[i % len(through)],
        )
        for i, n in enumerate(lengths)
    ]


def replayed(encoder: Encoder, sequences: list[Sequence]) -> bool:
    """Whether a graph serves them."""
    assert encoder.graphs is not None
    return encoder.graphs.run(encoder.pack(sequences, encoder.graphs.buckets)) is not None


def assert_same(encoder: Encoder, plain: Encoder, sequences: list[Sequence]) -> None:
    for got, wanted in zip(encoder.run(sequences), plain.run(sequences), strict=True):
        assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("want", ["embedding", "states"])
@pytest.mark.parametrize("lengths", [(1,), (16,), LENGTHS, (8, 8, 7)])
def test_a_graph_gives_what_the_same_texts_get_without_one(
    graphed: Encoder, plain: Encoder, lengths: tuple[int, ...], want: str
) -> None:
    base, a, b = graphed.version, version(graphed, 1), version(graphed, 2, rank=16)
    for through in ([base], [b, base, a]):
        sequences = dealt(through, lengths, want)
        assert replayed(graphed, sequences)
        assert_same(graphed, plain, sequences)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra"])
def test_a_graph_serves_other_bases_too(kind: str, tmp_path: Path) -> None:
    """Positions after the padding id; no token types; embeddings narrower than the states."""
    plain = replace(load(kind, tmp_path), graphs=None)
    encoder = with_graphs(plain)
    sequences = dealt([version(encoder, 1), encoder.version])
    assert replayed(encoder, sequences)
    assert_same(encoder, plain, sequences)


def test_an_adapter_does_something_in_these_tests(graphed: Encoder) -> None:
    by_base = graphed.run(dealt([graphed.version], (9,)))[0]
    by_adapter = graphed.run(dealt([version(graphed, 1)], (9,)))[0]
    assert (by_adapter - by_base).norm() > 0.01 * by_base.norm()


@pytest.mark.slow
def test_adapters_come_and_go_between_replays_and_leave_nothing_behind(
    graphed: Encoder, plain: Encoder
) -> None:
    first = dealt([version(graphed, 1), graphed.version])
    before = graphed.run(first)
    for seed in range(2, 4):
        swapped = dealt([version(graphed, seed, rank=4 * seed)], LENGTHS[:seed])
        assert replayed(graphed, swapped)
        assert_same(graphed, plain, swapped)
    for got, wanted in zip(graphed.run(first), before, strict=True):
        assert torch.equal(got, wanted)


def through_one_launch(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Product and updates as one launch, on a CPU; how many rows each had, and whether updates."""
    monkeypatch.setitem(tiles.TILES, 4, (tiles.Tile(64, 32, 32, 16, 4, 3),))
    for product in encoder._flat.products:
        one = fused.fused(product.frozen, len(product.members.paths))  # type: ignore[arg-type]
        monkeypatch.setattr(product, "fused", one)
    launched: list[tuple[int, bool]] = []
    through = fused.Fused.through

    def noted(self: Any, tile: Any, x: Tensor, plan: Any, number: int) -> Tensor:
        launched.append((len(x), plan is not None))
        return through(self, tile, x, plan, number)

    monkeypatch.setattr(fused.Fused, "through", noted)
    return launched


@pytest.mark.skipif(ON_CARD, reason="a card's own products are one launch, or slower")
@pytest.mark.parametrize("apart", [96, 0])
def test_one_launch_for_product_and_updates_gives_what_three_give(
    plain: Encoder, monkeypatch: pytest.MonkeyPatch, apart: int
) -> None:
    """apart 0: every batch is too crowded for it, and its updates are launched for themselves."""
    sequences = dealt([version(plain, 1), plain.version, version(plain, 2, rank=16)])
    wanted = plain.run(sequences)
    monkeypatch.setattr(fused, "APART", apart)
    launched = through_one_launch(plain, monkeypatch)
    graphed = with_graphs(plain)
    assert replayed(graphed, sequences)
    launched.clear()
    for got, three in zip(graphed.run(sequences), wanted, strict=True):
        assert_close(got, three, rtol=1e-4, atol=1e-5)
    assert launched and {updated for _, updated in launched} == {apart > 0}


@pytest.mark.skipif(ON_CARD, reason="a card's own products are one launch, or slower")
@pytest.mark.parametrize(
    ("ranks", "crowd"), [((0,), 0.0), ((5,), 8.0), ((5, 8), 16.0), ((16, 1), math.inf)]
)
def test_a_batch_goes_to_the_graph_that_takes_as_many_columns(
    plain: Encoder, monkeypatch: pytest.MonkeyPatch, ranks: tuple[int, ...], crowd: float
) -> None:
    """A rank takes a multiple of 8 of them; all of these texts stand on the same 128 rows."""
    monkeypatch.setattr(graphs, "CROWDS", (8.0, 16.0, math.inf))
    monkeypatch.setattr(fused, "APART", 16)
    through = [version(plain, 2, rank) if rank else plain.version for rank in ranks]
    sequences = dealt([plain.version, *through])
    wanted = plain.run(sequences)
    through_one_launch(plain, monkeypatch)
    graphed, served = with_graphs(plain), []
    assert graphed.graphs is not None
    crowds = {graph: crowd for (_, crowd), graph in graphed.graphs._graphs.items()}
    run = Graph.run
    monkeypatch.setattr(Graph, "run", lambda self, *of: served.append(self) or run(self, *of))
    for got, exact in zip(graphed.run(sequences), wanted, strict=True):
        assert_close(got, exact, rtol=1e-4, atol=1e-5)
    assert [crowds[graph] for graph in served] == [crowd]


@pytest.mark.parametrize(("free", "most"), [(10**9, 64), (3_999, 16), (4_000, 32), (0, 16)])
def test_graphs_take_half_of_the_free_memory_at_most(
    graphed: Encoder, monkeypatch: pytest.MonkeyPatch, free: int, most: int
) -> None:
    """A forward of 16 tokens takes 1,000 bytes here; the bucket that is measured always stays."""
    monkeypatch.setattr(graphs, "MEASURED", 16)
    monkeypatch.setattr(graphs, "free_memory", lambda _: free)
    for name, gives in (("memory_allocated", 500), ("max_memory_allocated", 1_500)):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda _, gives=gives: gives)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(graphed, "launch", lambda _: None)
    monkeypatch.setattr(graphed, "device", torch.device("cuda"))
    offered = [Bucket(n, 2, n) for n in (8, 16, 32, 64)]
    assert max(bucket.tokens for bucket in graphs._fitting(graphed, offered)) == most


def test_two_threads_may_run_graphs_though_these_share_their_memory(graphed: Encoder) -> None:
    def ask(seed: int) -> list[Sequence]:
        return dealt([graphed.version, version(graphed, seed)], LENGTHS[: seed % 4 + 1])

    alone = {seed: graphed.run(ask(seed)) for seed in range(8)}

    def again(seed: int) -> list[Tensor]:
        with torch.inference_mode():
            return graphed.run(ask(seed))

    with ThreadPoolExecutor(4) as threads:
        for i, rows in enumerate(threads.map(again, list(range(8)) * 6)):
            assert all(map(torch.equal, rows, alone[i % 8]))


def test_padding_is_cut_into_short_sequences(graphed: Encoder) -> None:
    """Attention takes the square of a sequence's length; none may be longer than was captured."""
    for total, count in ((1, 1), (300, 1), (3000, 40), (12289, 447)):
        lengths = [total // count] * count
        lengths[0] += total - sum(lengths)
        sequences = dealt([graphed.version], tuple(lengths))
        bucket = Bucket(16384, 576, 512, 128)
        ends = pack(sequences, None, [bucket]).ends()
        assert len(ends) == 576 + 128 + 1 and ends[count] == total and ends[-1] == 16384
        assert max(b - a for a, b in pairwise(ends[count:])) <= graphs.PADDING


@pytest.mark.skipif(ON_CARD, reason="a card's own products are one launch, or slower")
def test_merged_rows_are_not_multiplied_by_the_bases_weights_too(
    plain: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the padding, which stands behind them. The base's rows keep their bits."""
    base, updated, whole = plain.version, version(plain, 2), merged(plain)
    sequences = dealt([base, whole, updated])
    wanted = plain.run(sequences)
    launched = through_one_launch(plain, monkeypatch)
    for product in plain._flat.products:  # a GPU's have no packed copy
        monkeypatch.setattr(product.frozen, "packed", None)
    graphed = with_graphs(plain)
    alone = graphed.run(dealt([base, base, updated]))
    launched.clear()
    answers = graphed.run(sequences)
    for got, exact in zip(answers, wanted, strict=True):
        assert_close(got, exact, rtol=1e-4, atol=1e-5)
    of_base = sum(LENGTHS) - LENGTHS[1]
    assert [rows for rows, _ in launched] == [
        of_base if set(product.members.paths) <= set(whole.layers.own) else 32
        for product in plain._flat.products
    ]
    for i in (0, 3):
        assert torch.equal(answers[i], alone[i])


def own_norm(encoder: Encoder) -> Version:
    path = next(iter(encoder.base.norms))
    weight = torch.full((32,), 1.5, device=encoder.device)
    return version(encoder, 3, norms={path: Norm(weight, weight)})


def merged(encoder: Encoder) -> Version:
    plain = version(encoder, 4)
    return replace(plain, layers=merge_lora(encoder.wrappers, plain.adapter, plain.layers))


@pytest.mark.parametrize("made", [own_norm, merged, lambda e: version(e, 5, rank=17)])
def test_what_no_graph_holds_is_launched_and_changes_no_bit_of_the_bases_rows(
    graphed: Encoder,
    plain: Encoder,
    made: Callable[[Encoder], Version],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch, launched = graphed.launch, []

    def noting(batch: Batch, *between: Any) -> Tensor:
        launched.append(batch)
        return launch(batch, *between)

    monkeypatch.setattr(graphed, "launch", noting)
    base, updated = graphed.version, version(graphed, 2)
    sequences = dealt([base, made(graphed), updated])
    assert not replayed(graphed, sequences)
    assert_same(graphed, plain, sequences)
    (batch,) = launched
    assert (
        batch.numbers.shape[1] == 32
    )  # a graph's: on a card a row's bits go by how many there are
    alone = dealt([base, base, updated])
    assert replayed(graphed, alone)
    for got, wanted in list(zip(graphed.run(sequences), graphed.run(alone), strict=True))[::3]:
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("lengths", [(30, 5), (1,) * 5])
def test_what_fits_no_bucket_is_launched(
    graphed: Encoder, plain: Encoder, lengths: tuple[int, ...]
) -> None:
    sequences = dealt([graphed.version], lengths)
    assert not replayed(graphed, sequences)
    assert_same(graphed, plain, sequences)


def test_what_waits_goes_first_and_may_end_the_run(graphed: Encoder) -> None:
    class Ended(Exception):
        pass

    def end() -> None:
        raise Ended

    with pytest.raises(Ended):
        graphed.run(dealt([graphed.version]), end)


def raises(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
    raise RuntimeError("operation not permitted when stream is capturing\nadvice")


def wrong(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Each token's states are its neighbour's."""
    return lambda: forward().roll(1, 0)


@pytest.mark.parametrize(
    ("capture", "why"), [(raises, "not permitted when stream is capturing)"), (wrong, "are off by")]
)
def test_graphs_that_cannot_be_or_are_wrong_are_told_and_not_used(
    loaded: Encoder, monkeypatch: pytest.MonkeyPatch, capture: Any, why: str
) -> None:
    monkeypatch.setattr(graphs, "capture_on", lambda _: capture)
    encoder = replace(loaded, graphs=None, _varlen=True)
    add_graphs(encoder)
    assert encoder.graphs is None
    assert why in encoder.slow_paths["graphs"]


def test_what_goes_by_the_lengths_of_one_batch_cannot_be_captured(loaded: Encoder) -> None:
    """Attention by runs of equal lengths: replayed for other lengths it would be wrong."""
    why = graphs_of(replace(loaded, graphs=None, _varlen=False))
    assert isinstance(why, str) and "do not run here" in why


def test_graphs_that_are_right_pass(loaded: Encoder) -> None:
    encoder = replace(loaded, graphs=None, _varlen=True)
    add_graphs(encoder)
    assert encoder.graphs is not None and "graphs" not in encoder.slow_paths


def test_what_a_replay_reads_lives_as_long_as_the_graph() -> None:
    """A real graph holds addresses and no tensors: what went away would be another's memory."""
    read = []

    def forward(_: Inputs, updates: Updates) -> Tensor:
        assert updates.plan is not None
        plan = updates.plan
        read.extend(weakref.ref(t) for t in (plan.sums, plan.tiles, plan.table))
        return torch.zeros(16, 32)

    def capture(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        out = forward()
        return lambda: out

    shared = graphs.Shared(torch.empty(16 * 16), torch.empty(16, 32))
    graph = Graph(Bucket(16, 4, 16), 3, forward, shared, capture)
    del shared
    gc.collect()
    assert len(read) == 3 and all(tensor() is not None for tensor in read)
    del graph


@pytest.mark.skipif(not ON_CARD, reason="needs a GPU")
def test_a_card_serves_by_graphs(loaded: Encoder) -> None:
    assert loaded.graphs is not None and loaded.slow_paths == {}
