"""LoRA around every layer of a frozen encoder: insert, run by segment, merge, unmerge.

Knows modules and segments; knows no names of adapters. The base's weights are only ever read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.adapters.values import Adapter, Rows
from app.model.batch import Segment
from app.model.delta import CPU, NO_UPDATES, Layers, Updates, add_delta, gather, with_updates
from app.model.linear import FrozenLinear


def _go_on() -> None:
    """Nothing to do between two layers."""


@dataclass(eq=False)
class Pass:
    """One forward: who sits on which rows. between: called before every Linear, and may raise.

    norms, embeddings: the segments that bring their own; own: whether any has Linears of its own.
    So a layer that nobody changes does not go through hundreds of segments. update_s: seconds of
    its updates so far.
    """

    segments: Sequence[Segment] = ()
    updates: Updates = NO_UPDATES
    between: Callable[[], None] = _go_on
    norms: Sequence[Segment] = ()
    embeddings: Sequence[Segment] = ()
    own: bool = False
    update_s: float = 0.0

    def update(self, y: Tensor, x: Tensor, path: str, number: int) -> None:
        """As add_delta, and the time that it takes: on a CPU; a GPU computes later."""
        if not self.updates.touch(number):
            return
        started = time.perf_counter()
        add_delta(y, x, self.updates, path, number)
        if not y.is_cuda:
            self.update_s += time.perf_counter() - started


class Route(threading.local):
    """The forward that each thread is running. kernels_on: see delta.gather."""

    running = Pass()
    update_s = 0.0

    def __init__(self, kernels_on: torch.device | None = CPU) -> None:
        self.kernels_on = kernels_on

    @contextmanager
    def run(
        self,
        segments: Sequence[Segment],
        between: Callable[[], None] = _go_on,
        updates: Updates | None = None,
    ) -> Iterator[None]:
        """Route the forward inside by these segments; one that it interrupts goes on afterwards.

        updates: instead of the segments' own.
        """
        before = self.running
        if updates is None:
            updates = gather([(s.rows, s.layers) for s in segments], self.kernels_on)
        self.running = Pass(
            segments,
            updates,
            between,
            [s for s in segments if s.layers.norms],
            [s for s in segments if s.layers.embeddings],
            any(s.layers.own for s in segments),
        )
        try:
            yield
        finally:
            self.update_s += self.running.update_s
            self.running = before

    def take_update_s(self) -> float:
        """Seconds of updates in this thread's forwards that have ended since the last call."""
        update_s, self.update_s = self.update_s, 0.0
        return update_s


class LinearWithLoRA(nn.Module):
    """A frozen Linear whose rows each take their own segment's adapter, or none.

    The tutorial's `linear(x) + lora(x)`, with the lora chosen by segment.
    """

    def __init__(self, linear: nn.Linear, path: str, route: Route, number: int) -> None:
        super().__init__()
        self.linear = linear
        self.path = path
        self.route = route
        self.number = number
        self.frozen = FrozenLinear(linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]; the leading dimensions' product is the segments' T rows."""
        running = self.route.running
        running.between()
        rows = x.reshape(-1, x.shape[-1])
        y = self._products(rows, running.segments) if running.own else self.frozen(rows)
        running.update(y, rows, self.path, self.number)
        return y.view(*x.shape[:-1], -1)

    def _products(self, x: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Each stretch of rows times its own weight: the base's, a merged or a replaced one."""
        stretches: list[tuple[slice, FrozenLinear]] = []
        for s in segments:
            layer = s.layers.own.get(self.path, self.frozen)
            if stretches and stretches[-1][1] is layer:
                stretches[-1] = (slice(stretches[-1][0].start, s.rows.stop), layer)
            else:
                stretches.append((s.rows, layer))
        if len(stretches) == 1:
            return stretches[0][1](x)
        if self.frozen.packed is None and stretches[0][1] is self.frozen:
            # Here (CUDA) a row's bits depend on how many rows the product has: the base's rows
            # get the product over all rows, as they would without the merged ones beside them.
            y = self.frozen(x)
            for rows, layer in stretches[1:]:
                y[rows] = layer(x[rows])
            return y
        return torch.cat([layer(x[rows]) for rows, layer in stretches])


class NormWithLoRA(nn.Module):
    """A frozen LayerNorm whose rows may each have their own segment's weight and bias."""

    def __init__(self, norm: nn.LayerNorm, path: str, route: Route) -> None:
        super().__init__()
        self.norm = norm
        self.path = path
        self.route = route

    def forward(self, x: Tensor) -> Tensor:
        """x [1, T, H] -> the same shape."""
        y: Tensor = self.norm(x)
        for s in self.route.running.norms:
            own = s.layers.norms.get(self.path)
            if own is not None:
                shape = (x.shape[-1],)
                y[:, s.rows] = F.layer_norm(
                    x[:, s.rows], shape, own.weight, own.bias, self.norm.eps
                )
        return y


class EmbeddingWithLoRA(nn.Module):
    """A frozen Embedding whose rows may each have their own segment's table, update or rows."""

    def __init__(self, embedding: nn.Embedding, path: str, route: Route) -> None:
        super().__init__()
        self.embedding = embedding
        self.path = path
        self.route = route

    def forward(self, ids: Tensor) -> Tensor:
        """ids [1, T] -> [1, T, dim]."""
        y: Tensor = self.embedding(ids)
        for s in self.route.running.embeddings:
            change = s.layers.embeddings.get(self.path)
            if change is not None:
                y[0, s.rows] = look_up(change, ids[0, s.rows], y[0, s.rows])
        return y


def look_up(change: Rows, ids: Tensor, y: Tensor) -> Tensor:
    """ids [n] and the base's rows for them y [n, dim] -> the adapter's rows.

    Source: peft.tuners.lora.layer.Embedding.forward, trainable_tokens.layer.TrainableTokensLayer.
    """
    if change.table is not None:
        y = change.table[ids]
    if change.gain is not None:
        y = y * change.gain
    if change.A is not None and change.B is not None:
        y = y + change.A[ids] @ change.B.T
    if change.slot is not None and change.rows is not None:
        slot = change.slot[ids]
        y = torch.where((slot >= 0)[:, None], change.rows[slot], y)
    return y


def insert_lora(model: nn.Module, route: Route) -> dict[str, LinearWithLoRA]:
    """Put a wrapper in the place of every Linear, LayerNorm and Embedding below `model`.

    Returns the Linears' by path, in the order of their numbers.
    """
    linears: dict[str, LinearWithLoRA] = {}
    for path, module in list(model.named_modules()):
        wrapper: nn.Module
        if type(module) is nn.Linear:
            wrapper = linears[path] = LinearWithLoRA(module, path, route, len(linears))
        elif type(module) is nn.LayerNorm:
            wrapper = NormWithLoRA(module, path, route)
        elif type(module) is nn.Embedding:
            wrapper = EmbeddingWithLoRA(module, path, route)
        else:
            continue
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, wrapper)
    return linears


@torch.inference_mode()
def merge_lora(wrappers: Mapping[str, LinearWithLoRA], adapter: Adapter, layers: Layers) -> Layers:
    """The adapter's layers with gain * W + BA in the place of every update: a second copy, its own.

    Computed in fp32, stored in the base's dtype; the base itself is not touched, so there is
    nothing to subtract at unmerge: dropping the copy is the unmerge, without drift. What only adds
    a constant stays an update.
    """
    own = dict(layers.own)
    updates = dict(layers.updates)
    for path, lora in adapter.layers.items():
        if not lora.rescales:
            continue
        del updates[path]
        linear = wrappers[path].linear
        weight: Tensor = linear.weight.float()
        bias: Tensor | None = None if linear.bias is None else linear.bias.float()
        if lora.gain is not None:
            weight = lora.gain.float()[:, None] * weight
            bias = None if bias is None else lora.gain.float() * bias
        if lora.shift is not None:
            bias = lora.shift.float() if bias is None else bias + lora.shift.float()
        weight = weight + lora.B.float() @ lora.A.float()
        dtype = linear.weight.dtype
        bias = None if bias is None else bias.to(dtype)
        own[path] = FrozenLinear(weight.to(dtype), bias, keep_weight=False)
    return with_updates(replace(layers, own=own), updates, list(wrappers))


def merged_bytes(wrappers: Mapping[str, LinearWithLoRA], adapter: Adapter) -> int:
    """How many bytes merge_lora's copy will take."""
    return sum(
        wrappers[path].frozen.bytes for path, lora in adapter.layers.items() if lora.rescales
    )
