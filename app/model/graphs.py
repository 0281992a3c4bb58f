"""A forward as CUDA graphs: one launch in place of hundreds that starve the card.

One graph for each bucket without low-rank updates, and some with them. A graph reads its batch from
one table that never moves: tokens, where each sequence ends, and each adapter's matrices by
address. So it serves adapters that came after it, and any batch that fits. All are captured at
start, and each is compared with the same forward launched one by one. Import it only where Triton
is. Knows rows, tables and addresses; knows no model.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from app.adapters.base import Base
from app.adapters.values import Adapter, LoRALayer, laid_out
from app.model import kernel_cuda
from app.model.batch import Batch, Bucket, Inputs
from app.model.delta import Updates, stack, unmerged_layers
from app.model.graph_table import Stacked, table_of
from app.model.kernel_cuda import RANKS, Plan
from app.model.lora import LinearWithLoRA
from app.model.machine import first_line, free_memory
from app.model.sequence import Sequence, Want
from app.model.tiles import APART
from app.model.version import Version

TOKENS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 2048)
# The last is what a batch has at most by default: where the card has much to do, batches are full.
MANY_TOKENS = (3072, 4096, 6144, 8192, 12288, 16384)
SHORT = 128  # tokens; attention of many tokens is captured for such sequences, and for any
SEQUENCES, MEAN = 64, 32  # a bucket holds so many, and one more for each MEAN tokens
PADDING = 128  # tokens of a sequence of padding at most
MEASURED = 2048  # tokens of the forward whose memory is measured
SHARE = 0.5  # of the free memory, for all graphs
RANK = 256  # an adapter of a larger one is launched one by one
TRIED_RANK = 20
# Plan.crowd's, each for a graph of its own: how many columns of A go along at once, or apart.
CROWDS = (16.0, float(APART), math.inf)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the largest value
ONE_BY_ONE = "batches are launched kernel by kernel"

Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
Forward = Callable[[Inputs, Updates], Tensor]  # hidden states [rows, H], launched one by one


class Launcher(Protocol):
    """What is captured: encoder.Encoder, whose words these are."""

    base: Base
    device: torch.device
    dtype: torch.dtype
    max_length: int
    vocabulary: int
    wrappers: dict[str, LinearWithLoRA]
    version: Version

    @property
    def one_launch(self) -> bool:
        """See Encoder.one_launch."""
        ...

    def pack(self, sequences: list[Sequence], buckets: list[Bucket]) -> Batch:
        """See Encoder.pack."""
        ...

    def launch(self, batch: Batch) -> Tensor:
        """See Encoder.launch."""
        ...

    def forward(self, inputs: Inputs, updates: Updates) -> Tensor:
        """See Encoder.forward."""
        ...


def buckets(longest: int) -> list[Bucket]:
    """The smallest first. longest: tokens that a sequence may have."""
    longest = max(longest, PADDING)
    shapes = [(n, longest) for n in TOKENS]
    shapes += [(n, most) for n in MANY_TOKENS for most in sorted({SHORT, longest})]
    return [
        Bucket(n, min(n // 8, SEQUENCES + n // MEAN), min(n, most), -(-n // PADDING))
        for n, most in shapes
    ]


@dataclass(frozen=True, eq=False)
class Shared:
    """What all graphs write to, since one runs at a time. sums: see Plan. states [T, H]."""

    sums: Tensor
    states: Tensor


class Graph:
    """One bucket's forward over a table of its own, as often as it is asked for."""

    def __init__(
        self,
        bucket: Bucket,
        linears: int,
        forward: Forward,
        shared: Shared,
        capture: Capture,
        crowd: float = 0.0,
    ) -> None:
        """linears: how many the base has; 0: this graph serves batches without updates. crowd:
        Plan's, of the batches that it serves."""
        self.bucket = bucket
        self.linears = linears
        self.table = table_of(bucket, linears, shared.sums.device)
        blocks = (RANK // RANKS,) * linears
        table = self.table
        parts = table.tiles, table.entries, table.edges, table.spans
        plan = Plan(*parts, blocks, (crowd,) * linears, shared.sums)
        touched = np.ones(linears, bool) if linears else None
        self._updates = Updates(plan=plan, touched=touched)  # a replay reads its memory
        states = shared.states[: bucket.tokens]
        self._replay = capture(lambda: states.copy_(forward(self._inputs(), self._updates)))

    def _inputs(self) -> Inputs:
        rows, ends = self.table.rows, self.table.ends.to(torch.int32)
        return Inputs(rows[0:1], rows[1:2], rows[2:3], ends, self.bucket.longest, [])

    def run(self, batch: Batch, updates: Stacked | None) -> Tensor:
        """The batch's hidden states [T, H], the caller's own."""
        on_card = self.table.flat.is_cuda
        host = table_of(self.bucket, self.linears, torch.device("cpu"), pinned=on_card)
        host.fill(batch, updates)
        self.table.flat.copy_(host.flat, non_blocking=True)
        return self._replay()[: batch.tokens].clone()


def capture_on(device: torch.device) -> Capture:
    """What makes CUDA graphs of forwards. They share their memory: one runs at a time.

    Whoever has a graph keeps every tensor that the forward reads. Raises whatever a capture raises.
    """
    pool = torch.cuda.graph_pool_handle()
    aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def capture(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            forward()  # so that what is loaded or allocated for good at a first run is there
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool, aside, capture_error_mode="thread_local"):
            out = forward()
        torch.cuda.current_stream(device).wait_stream(aside)

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay

    return capture


class Graphs:
    """All graphs of one base."""

    def __init__(self, encoder: Launcher) -> None:
        """Capture them, the largest first: the others find their memory in its."""
        self.buckets = _fitting(encoder, buckets(encoder.max_length))
        self._lock = threading.Lock()
        self._crowds = CROWDS if encoder.one_launch else CROWDS[-1:]
        self._graphs: dict[tuple[Bucket, float], Graph] = {}
        most, on = self.buckets[-1].tokens, encoder.device
        states = torch.empty(most, encoder.base.hidden, dtype=encoder.dtype, device=on)
        shared = Shared(torch.empty(most * RANK, device=on), states)
        of, count = (encoder.forward, shared, capture_on(on)), len(encoder.wrappers)
        for bucket in reversed(self.buckets):
            self._graphs[bucket, 0.0] = Graph(bucket, 0, *of)
            for crowd in self._crowds:
                self._graphs[bucket, crowd] = Graph(bucket, count, *of, crowd)

    def run(self, batch: Batch, between: Callable[[], None] = lambda: None) -> Tensor | None:
        """The batch's hidden states [T, H]; None where no graph gives them.

        None does where an adapter brings weights, norms or embeddings of its own. between: called
        once before, since nothing interrupts a graph.
        """
        ranks = [segment.layers.widest for segment in batch.segments]
        if batch.bucket is None or any(rank is None or rank > RANK for rank in ranks):
            return None
        updates = stack([(s.rows, s.layers) for s in batch.segments if s.layers.updates])
        between()
        crowd = 0.0 if updates is None else self._crowd(*updates)
        with self._lock:
            return self._graphs[batch.bucket, crowd].run(batch, updates)

    def _crowd(self, rows: np.ndarray, table: np.ndarray) -> float:
        """Which of the graphs with updates serves these."""
        crowd = max(kernel_cuda.crowd_of(kernel_cuda.edges_of(rows), table))
        return next(most for most in self._crowds if crowd <= most)


def graphs_of(encoder: Launcher) -> Graphs | str:
    """Its graphs, or why it has none, in words: captured and tried here, at start."""
    try:
        graphs = Graphs(encoder)
        worst = max(
            _off(encoder, graphs, bucket, versions)
            for versions in ([encoder.version], [_drawn(encoder, i) for i in range(3)])
            for bucket in graphs.buckets
        )
    except Exception as error:  # whatever a driver, or what cannot be captured, raises
        return f"CUDA graphs do not run here ({first_line(error)}), {ONE_BY_ONE}"
    if not worst <= TOLERANCE[encoder.dtype]:
        return f"CUDA graphs are off by {worst:.1e} here, {ONE_BY_ONE}"
    return graphs


def _off(encoder: Launcher, graphs: Graphs, bucket: Bucket, versions: list[Version]) -> float:
    """How far a graph is from the same forward launched kernel by kernel, over drawn sequences."""
    batch = _drawn_batch(encoder, bucket, versions)
    launched, replayed = encoder.launch(batch), graphs.run(batch)
    if replayed is None:  # pragma: no cover - every drawn batch fits
        return float("inf")
    off = (replayed - launched).abs().max() / launched.abs().max()
    return float(torch.nan_to_num(off.float(), nan=float("inf")))


def _fitting(encoder: Launcher, buckets: list[Bucket]) -> list[Bucket]:
    """Those whose forward takes at most its share of the free memory: all on a CPU."""
    if encoder.device.type == "cpu":
        return buckets
    tried = next((bucket for bucket in buckets if bucket.tokens >= MEASURED), buckets[-1])
    batch = _drawn_batch(encoder, tried, [encoder.version])
    encoder.launch(batch)  # what is allocated for good at a first run is no part of it
    torch.cuda.reset_peak_memory_stats(encoder.device)
    before = torch.cuda.memory_allocated(encoder.device)
    encoder.launch(batch)
    took = torch.cuda.max_memory_allocated(encoder.device) - before
    most = SHARE * free_memory(encoder.device) * tried.tokens / took
    return [bucket for bucket in buckets if bucket.tokens <= max(most, tried.tokens)]


def _drawn_batch(encoder: Launcher, bucket: Bucket, versions: list[Version]) -> Batch:
    """Of drawn sequences that nearly fill the bucket."""
    longest = min(bucket.longest, encoder.max_length)
    total = min(bucket.tokens - 1, bucket.sequences * longest)
    count = max(-(-total // longest), min(bucket.sequences, 5))
    lengths = [total // count + (i < total % count) for i in range(count)]
    for i in range(0, count - 1, 2):
        moved = min(lengths[i + 1], longest - lengths[i]) // 2
        lengths[i : i + 2] = lengths[i] + moved, lengths[i + 1] - moved
    rng = np.random.default_rng(bucket.tokens)
    sequences = [
        Sequence(
            rng.integers(0, encoder.vocabulary, length).tolist(),
            [0] * length,
            Want("embedding"),
            versions[i % len(versions)],
        )
        for i, length in enumerate(lengths)
    ]
    return encoder.pack(sequences, [bucket])


def _drawn(encoder: Launcher, seed: int) -> Version:
    """An adapter of low-rank updates of every other Linear, or of none for seed 0."""
    rng = torch.Generator().manual_seed(seed)
    layers = {}
    for path, wrapper in list(encoder.wrappers.items())[seed % 2 :: 2] if seed else []:
        out, in_ = wrapper.linear.weight.shape
        A = torch.randn(TRIED_RANK, in_, generator=rng)
        B = torch.randn(out, TRIED_RANK, generator=rng)
        layers[path] = LoRALayer(A / in_, B / TRIED_RANK, torch.ones(out), torch.ones(out) / out)
    adapter = laid_out(Adapter(layers, "peft"), encoder.device, encoder.dtype)
    return Version(str(seed), adapter, unmerged_layers(adapter, list(encoder.wrappers)))
