"""What an adapter is once read: changes of the base's layers by module path, a head, labels.

Plain data, frozen. Knows neither the file it came from (read.py) nor who serves it (catalog/).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from app.adapters.sentence import Sentence

Task = Literal["embed", "classify", "tokens"]
Scores = Literal["softmax", "sigmoid", "none"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Source = Literal["cls", "mean", "pooler", "tokens"]
T = TypeVar("T")
PART_BYTES = 16  # what a GPU reads at once, where it begins at a multiple of that


@dataclass(frozen=True)
class Scaling:
    """What a layer's matrices are multiplied by, and how that was computed. None: not in it."""

    formula: str
    scale: float
    alpha: float | None = None
    r: float | None = None


@dataclass(frozen=True, eq=False)
class LoRALayer:
    """One Linear's update: y = gain * (x @ W.T + b) + shift + (x @ A.T) @ B.T.

    A [r, in], B [out, r] with the scale (and the gain, where there is one) folded in; r may be 0.
    gain [out]: DoRA, IA3. shift [out]: trained biases. Hu et al. 2021, eq. 3; Liu et al. 2024
    (DoRA).
    """

    A: Tensor
    B: Tensor
    gain: Tensor | None = None
    shift: Tensor | None = None

    @property
    def rank(self) -> int:
        """r; 0 without matrices."""
        return self.A.shape[0]

    @property
    def rescales(self) -> bool:
        """Does it more than add a constant, so that merging it needs a weight of its own?"""
        return self.rank > 0 or self.gain is not None


@dataclass(frozen=True, eq=False)
class Dense:
    """A whole linear layer that an adapter brings along. weight [out, in], bias [out]."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Norm:
    """A LayerNorm's own weight and bias [H]."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Rows:
    """One embedding's change: y = gain * table[id] + A[id] @ B.T, and whole rows replaced.

    table [num, dim]: in place of the base's. A [num, r], B [dim, r], gain [dim].
    slot [num]: for each id the row of `rows` [n, dim] that replaces it, or -1.
    """

    table: Tensor | None = None
    A: Tensor | None = None
    B: Tensor | None = None
    gain: Tensor | None = None
    slot: Tensor | None = None
    rows: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Head:
    """states [H] -> logits [L]: optional dense + activation + norm, then the output layer.

    source "cls": the first token's last hidden state; "mean": the mean over the tokens; "pooler":
    the base's own pooler's output; "tokens": every token by itself. activation: transformers' name.
    """

    source: Source
    dense: Dense | None
    activation: str | None
    out: Dense
    norm: Norm | None = None
    norm_eps: float = 1e-5

    @property
    def labels(self) -> int:
        """How many it tells apart."""
        return self.out.weight.shape[0]


@dataclass(frozen=True, eq=False)
class Adapter:
    """A canonical adapter: all that the forward needs, all scales folded.

    layers, replaced, norms, embeddings: by the base's module path; a path is in one of them only.
    kind: PEFT's peft_type. scalings: those of its layers, each once. sentence: how it makes
    vectors; a member that is None is the base's. ignored: names of tensors that only repeat what
    others say. assumed: what the upload leaves open and how it was taken, in words.
    """

    layers: Mapping[str, LoRALayer]
    layout: str
    scalings: tuple[Scaling, ...] = ()
    kind: str = "LORA"
    task: Task = "embed"
    replaced: Mapping[str, Dense] = field(default_factory=dict)
    norms: Mapping[str, Norm] = field(default_factory=dict)
    embeddings: Mapping[str, Rows] = field(default_factory=dict)
    head: Head | None = None
    labels: tuple[str, ...] = ()
    scores: Scores = "softmax"
    sentence: Sentence = field(default_factory=Sentence)
    ignored: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    @property
    def scale(self) -> float | None:
        """Its layers' scale, where they all have one and the same."""
        scales = {scaling.scale for scaling in self.scalings}
        return scales.pop() if len(scales) == 1 else None

    @property
    def rank(self) -> int:
        """The largest rank of its layers; 0 without any."""
        tables = [e.A.shape[1] for e in self.embeddings.values() if e.A is not None]
        return max([*(layer.rank for layer in self.layers.values()), *tables], default=0)

    @property
    def targets(self) -> dict[str, int]:
        """How many layers of each module name, e.g. {"query": 6, "value": 6}."""
        counts: dict[str, int] = {}
        for path in [*self.layers, *self.replaced, *self.norms, *self.embeddings]:
            name = path.rsplit(".", 1)[-1]
            counts[name] = counts.get(name, 0) + 1
        return counts

    @property
    def changes_encoder(self) -> bool:
        """Does it change anything but the head?"""
        return bool(self.layers or self.replaced or self.norms or self.embeddings)

    @property
    def resident_bytes(self) -> int:
        """What its tensors take in memory."""
        return sum(t.numel() * t.element_size() for t in tensors_of(self))


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor inside a dataclass or mapping."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors_of(inner)
    elif is_dataclass(value):
        for f in fields(value):
            yield from tensors_of(getattr(value, f.name))


def move(value: T, device: torch.device, dtype: torch.dtype) -> T:
    """The same value with every tensor inside on the base's device, floats in the base's dtype."""
    if isinstance(value, Tensor):
        to = dtype if value.is_floating_point() else value.dtype
        return value.to(device=device, dtype=to)  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {k: move(v, device, dtype) for k, v in value.items()}  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        moved = {f.name: move(getattr(value, f.name), device, dtype) for f in fields(value)}
        return replace(value, **moved)
    return value


def laid_out(adapter: Adapter, device: torch.device, dtype: torch.dtype) -> Adapter:
    """The adapter on the base's device in the base's dtype, ready to run.

    Low-rank layers have every A by rows and B by columns, as model/kernel.py reads them, with gain
    and shift in one allocation: they take no more than their bytes and what lets each part begin at
    a multiple of PART_BYTES, and the system gets those back whole when the adapter goes. On the CPU
    they are float32 whatever the base is.
    """
    updates_dtype = torch.float32 if device.type == "cpu" else dtype
    step = PART_BYTES // updates_dtype.itemsize
    sizes = [
        -(-part.numel() // step) * step
        for layer in adapter.layers.values()
        for part in _parts(layer)
        if part is not None
    ]
    block = _block(sum(sizes), device, updates_dtype)
    written = iter(torch.split(block, sizes))
    for layer in adapter.layers.values():
        for part in _parts(layer):
            if part is not None:
                next(written)[: part.numel()].view(part.shape).copy_(part)
    places = iter(torch.split(_copied(block, device), sizes))

    def placed(part: Tensor | None) -> Tensor | None:
        return None if part is None else next(places)[: part.numel()].view(part.shape)

    layers = {}
    for path, layer in adapter.layers.items():
        A, columns, gain, shift = map(placed, _parts(layer))
        layers[path] = LoRALayer(A, columns.T, gain, shift)  # type: ignore[arg-type, union-attr]
    return replace(move(replace(adapter, layers={}), device, dtype), layers=layers)


def _parts(layer: LoRALayer) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """A, B by columns, gain, shift."""
    return layer.A, layer.B.T, layer.gain, layer.shift


def _block(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros [size] on the CPU: for it in pages of its own, since the heap would keep what is freed;
    for a GPU in memory that it copies from by itself.
    """
    if device.type != "cpu" or not size:
        return torch.zeros(size, dtype=dtype, pin_memory=device.type == "cuda")
    return torch.frombuffer(mmap.mmap(-1, size * dtype.itemsize), dtype=dtype)


def _copied(block: Tensor, device: torch.device) -> Tensor:
    """The block on the device, once it is there. To a GPU beside what runs there, in one copy."""
    if device.type != "cuda":
        return block.to(device)
    aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    place = torch.empty_like(block, device=device)
    aside.wait_stream(torch.cuda.current_stream(device))  # its memory may be read there still
    with torch.cuda.stream(aside):
        place.copy_(block, non_blocking=True)
    aside.synchronize()
    return place
