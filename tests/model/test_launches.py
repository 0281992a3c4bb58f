"""How many kernels a GPU is told to run, counted on any machine: Python tells it one after another,
and a card waits for that.

Attention and Triton's kernels are counted and not run, so that no number of an answer means
anything here; everything else runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
from app.adapters.values import Adapter, LoRALayer, laid_out
from app.model import attention, fused, head, kernel_cuda
from app.model.base_files import find_base
from app.model.delta import unmerged_layers
from app.model.encoder import Encoder
from app.model.fused import Fused
from app.model.load_encoder import load_encoder
from app.model.sequence import Sequence, Want
from app.model.version import Version
from tests.tiny import save_tiny_base

CPU = torch.device("cpu")
A_LAYER, AROUND, AFTER = 14, 8, 12  # at most; around: embeddings, and what brings the batch
# What only describes memory, or takes it, and runs nothing.
FREE = {
    "alias", "as_strided", "detach", "empty", "empty_like", "expand", "lift_fresh", "new_empty",
    "permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "to",
    "transpose", "unbind", "unsqueeze", "view", "_reshape_alias", "_unsafe_view", "flatten",
    "expand_as", "unfold", "empty_strided",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """The names of the operators that ran, and of the kernels that were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.partition("::")[2]
        if name not in FREE:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    launches = Launches()

    def noted(name: str, answer: Any = None) -> Any:
        def note(*arguments: Any, **_: Any) -> Any:
            launches.names.append(name)
            return answer(*arguments) if answer else None

        return note

    def in_float32(q: Tensor, *_: Any) -> tuple[Tensor]:
        return (q.new_empty(q.shape),)

    monkeypatch.setattr(attention, "efficient_attention", noted("attention", in_float32))
    monkeypatch.setattr(kernel_cuda, "_launch", noted("update"))
    monkeypatch.setattr(fused, "_launch", noted("product"))
    monkeypatch.setattr(kernel_cuda, "to_device", lambda tensor, _: tensor)
    with torch.inference_mode():
        yield launches


def encoder_of(folder: Path, one_launch: bool) -> Encoder:
    """As on a GPU. one_launch: of a product and its updates."""
    files = find_base(str(save_tiny_base("bert", folder)), None)
    encoder = load_encoder(files, CPU, torch.float32)
    for product in encoder.products if one_launch else []:
        assert product.frozen.weight is not None
        weight, bias = product.frozen.weight, product.frozen.bias
        product.fused = Fused(weight, bias, len(product.members.paths))
    return replace(encoder, _varlen=True, _kernels_on=torch.device("cuda"))


def adapted(encoder: Encoder, seed: int, targets: str = "") -> Version:
    layers = {
        path: LoRALayer(torch.ones(8, in_), torch.ones(out, 8))
        for path, (out, in_) in encoder.base.linears.items()
        if targets in path and "pooler" not in path
    }
    adapter = laid_out(Adapter(layers, "peft"), CPU, torch.float32)
    return Version(str(seed), adapter, unmerged_layers(adapter, list(encoder.wrappers)))


def dealt(texts: int, versions: list[Version], want: Want) -> list[Sequence]:
    each = [versions[i % len(versions)] for i in range(texts)]
    return [Sequence([5 + i % 7] * 9, [0] * 9, want, one) for i, one in enumerate(each)]


def asked_for(counted: Launches, encoder: Encoder, sequences: list[Sequence]) -> list[list[str]]:
    """Until the last hidden states, and after them."""
    batch = encoder.pack(sequences)
    with counted:
        hidden = encoder.launch(batch)
        before, counted.names = counted.names, []
        head.answers(hidden, batch, None)
    after, counted.names = counted.names, []
    return [before, after]


@pytest.mark.parametrize("adapters", [0, 1, 16])
def test_a_forward_stays_in_its_budget_whatever_the_number_of_texts(
    counted: Launches, tmp_path: Path, adapters: int
) -> None:
    encoder = encoder_of(tmp_path, one_launch=True)
    versions = [adapted(encoder, seed) for seed in range(adapters)] or [encoder.version]
    few, many = max(1, adapters), 300
    _, *found = [
        asked_for(counted, encoder, dealt(texts, versions, Want("embedding")))
        for texts in (few, few, many)  # what is made for good is made in the first
    ]
    for before, after in found:
        assert len(before) <= A_LAYER * encoder.base.layers + AROUND, before
        assert len(after) <= AFTER, after
        assert before.count("product") == 4 * encoder.base.layers
        assert "update" not in before
        assert "_local_scalar_dense" not in before  # what makes Python wait for the card
    assert len(found[0][0]) == len(found[1][0]) and len(found[0][1]) == len(found[1][1])


def test_a_layer_that_no_adapter_of_the_batch_targets_launches_no_update(
    counted: Launches, tmp_path: Path
) -> None:
    encoder = encoder_of(tmp_path, one_launch=False)
    versions = [adapted(encoder, seed, "query") for seed in range(3)]
    before, _ = asked_for(counted, encoder, dealt(30, versions, Want("embedding")))
    assert before.count("update") == 2 * encoder.base.layers


def test_token_states_of_many_texts_are_as_few_launches_as_of_one(
    counted: Launches, tmp_path: Path
) -> None:
    encoder = encoder_of(tmp_path, one_launch=True)
    counts = [
        len(asked_for(counted, encoder, dealt(texts, [encoder.version], Want("states")))[1])
        for texts in (1, 200)
    ]
    assert counts[0] == counts[1] <= AFTER
