"""The frozen base: run packed batches through it, give hidden states.

transformers' model says what is computed (flat.py), with our own attention (attention.py) and
Linears (lora.py). Knows no names of adapters and no clients.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.adapters.base import Base
from app.adapters.sentence import Sentence
from app.adapters.values import Adapter
from app.model import head
from app.model.base_files import BaseFiles
from app.model.batch import NOTHING, Batch, Bucket, Inputs, pack, segments
from app.model.delta import BASE_LAYERS, Layers, Updates
from app.model.flat import Flat
from app.model.forward_pass import Pass, pass_of
from app.model.int8 import Read
from app.model.linears import Linears
from app.model.lora import LinearWithLoRA
from app.model.sequence import Sequence, Want
from app.model.states import States
from app.model.version import Version

if TYPE_CHECKING:
    from app.model.graphs import Graphs


class Spent(threading.local):
    """Seconds, each thread's own."""

    update_s = 0.0


@dataclass(eq=False)
class Encoder:
    """One frozen base. Several threads may run it, each its own batch.

    version: the base itself, for sequences that no adapter changes; its digest is sha256 over every
    parameter and buffer at load. max_length: tokens per sequence. slow_paths: see FastPaths.slow.
    graphs: on a GPU.
    """

    files: BaseFiles
    base: Base
    device: torch.device
    dtype: torch.dtype
    max_length: int
    vocabulary: int
    wrappers: dict[str, LinearWithLoRA]
    version: Version
    slow_paths: Mapping[str, str]
    _frozen: Mapping[str, Read]
    _first_position: int
    _takes_types: bool
    _flat: Flat
    _pooler: Linears | None
    _kernels_on: torch.device | None
    _varlen: bool
    graphs: Graphs | None = None
    _spent: Spent = field(default_factory=Spent)

    @property
    def adapters_dtype(self) -> torch.dtype:
        """Of what adapters bring: the base's, and float32 over one in int8."""
        return torch.float32 if self.dtype == torch.int8 else self.dtype

    @property
    def products(self) -> list[Linears]:
        """What a forward multiplies by, the pooler aside."""
        return self._flat.products

    @property
    def digest(self) -> str:
        """The base's, as it was at load."""
        return self.version.digest

    @property
    def type_vocabulary(self) -> int:
        """How many token types it knows; 0: it takes none."""
        sizes = (n for path, (n, _) in self.base.embeddings.items() if "token_type" in path)
        return next(sizes, 0) if self._takes_types else 0

    @property
    def one_launch(self) -> bool:
        """Whether any product and its updates are one launch, on a GPU."""
        return any(product.fused for product in self._flat.products)

    @property
    def _padding(self) -> int | None:
        """The padding id where it takes no position of its own."""
        return self._first_position - 1 if self._first_position else None

    def sentence(self, adapter: Adapter) -> Sentence:
        """How texts become vectors: the adapter's own way, and the base's where it says nothing."""
        way = adapter.sentence.over(self.files.sentence)
        return replace(way, max_length=min(way.max_length or self.max_length, self.max_length))

    @torch.inference_mode()
    def run(
        self, sequences: list[Sequence], between: Callable[[], None] = lambda: None
    ) -> list[Tensor]:
        """Embeddings or logits (float32, on the CPU), one per sequence, in their order.

        between: called before each Linear. It may run other sequences first, or raise: that ends
        the run.
        """
        batch = self.pack(sequences, self.graphs.buckets if self.graphs else ())
        hidden = self.graphs.run(batch, between) if self.graphs else None
        if hidden is None:
            hidden = self.launch(batch, between)
        rows = head.answers(hidden, batch, self._pool if self._pooler else None)
        ordered: list[Tensor | None] = [None] * len(sequences)
        for place, row in zip(batch.order, rows, strict=True):
            ordered[place] = row
        return [row for row in ordered if row is not None]

    def pack(self, sequences: list[Sequence], buckets: Iterable[Bucket] = ()) -> Batch:
        """Pack them for this base; buckets: see batch.pack."""
        return pack(sequences, self._padding, buckets, self._first_position)

    def launch(self, batch: Batch, between: Callable[[], None] = lambda: None) -> Tensor:
        """The batch's hidden states [T, H], kernel by kernel."""
        running = self._pass(batch, between)
        try:
            hidden = self._flat.last(running)[0]
        finally:
            self._spent.update_s += running.update_s
        return hidden[: batch.tokens]

    def _pass(self, batch: Batch, between: Callable[[], None] = lambda: None) -> Pass:
        inputs = batch.inputs(self.device, self._varlen)
        return pass_of(inputs, batch.segments, self._kernels_on, between)

    def forward(self, inputs: Inputs, updates: Updates) -> Tensor:
        """Hidden states [rows, H] through these updates and nothing else: what a graph holds."""
        return self._flat.last(Pass(inputs, updates=updates))[0]

    def _pool(self, rows: Tensor, sequences: list[Sequence]) -> Tensor:
        """The base's pooler over first-token rows [S, H], each through its sequence's layers."""
        running = pass_of(NOTHING, segments(sequences, [1] * len(sequences)), self._kernels_on)
        pooled: Tensor = torch.tanh(self._pooler.rows(running, rows[None])[0])  # type: ignore
        self._spent.update_s += running.update_s
        return pooled

    def take_update_s(self) -> float:
        """Seconds of low-rank updates in this thread's runs since the last call; 0 on a GPU."""
        update_s, self._spent.update_s = self._spent.update_s, 0.0
        return update_s

    @torch.inference_mode()
    def states(self, ids: Iterable[int], layers: Layers = BASE_LAYERS) -> States:
        """One text's hidden states, through an adapter's layers or the plain base."""
        tokens, version = list(ids), replace(self.version, layers=layers)
        text = Sequence(tokens, [0] * len(tokens), Want("embedding", normalize=False), version)
        batch = self.pack([text])
        last, _, *layers_out = (state[0] for state in self._flat.all(self._pass(batch)))
        ends = [last.flatten()]
        if self._pooler is not None:
            ends.append(self._pool(last[:1], [text])[0])
        return States([h.double() for h in layers_out], torch.cat(ends).double())

    def digest_now(self) -> str:
        """The digest again, over the tensors as they are; packed copies are compared with them."""
        products = [*self._flat.products, *([self._pooler] if self._pooler else [])]
        if not all(product.frozen.intact() for product in products):
            return "a packed copy differs from its weight"
        return digest_of(self._frozen)


def digest_of(tensors: Mapping[str, Read]) -> str:
    """sha256 over every tensor's name, dtype, shape and bytes, by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        plain = tensors[name]().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
