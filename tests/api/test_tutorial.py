"""The project's origin: the tutorial's own classes, trained a few steps, saved and PUT as a
file.
"""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModel

from tests.live import LiveServer
from tests.oracles import FP32, SENTENCES, encode, mean_embedding


class LoRALayer(nn.Module):
    """As in the tutorial: B zeros, A random, y = (alpha / r) x B A."""

    def __init__(self, in_: int, out: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.B = nn.Parameter(torch.zeros(in_, rank))
        self.A = nn.Parameter(torch.randn(rank, out) / rank**0.5)
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x @ self.B @ self.A)


class LinearWithLoRA(nn.Module):
    """As in the tutorial: the frozen layer plus the update."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear = linear
        self.lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) + self.lora(x)
        return out


def insert_lora(model: nn.Module, rank: int, alpha: float) -> int:
    """Into every Linear; how many there are."""
    count = 0
    for name, child in model.named_children():
        if isinstance(child, nn.Linear):
            setattr(model, name, LinearWithLoRA(child, rank, alpha))
            count += 1
        else:
            count += insert_lora(child, rank, alpha)
    return count


def trained(folder: Path, rank: int, alpha: float, steps: int = 5) -> nn.Module:
    """A few real steps: pull two texts' embeddings together, push a third away."""
    torch.manual_seed(0)
    model = AutoModel.from_pretrained(folder)
    model.requires_grad_(False)
    assert insert_lora(model, rank, alpha) == 6 * model.config.num_hidden_layers + 1
    lora = [p for n, p in model.named_parameters() if ".lora." in n]
    for p in lora:
        p.requires_grad_(True)
    optimizer = torch.optim.Adam(lora, lr=2e-3)
    for _ in range(steps):
        rows = [encode(folder, t, 60) for t in SENTENCES[:3]]
        a, b, c = (
            model(**r).pooler_output[0] + model(**r).last_hidden_state[0].mean(0) for r in rows
        )
        (a.dot(c) - a.dot(b)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def saved(model: nn.Module) -> bytes:
    return save({n: p.detach().contiguous() for n, p in model.named_parameters() if ".lora." in n})


@pytest.mark.parametrize("merged", [False, True])
def test_the_served_output_is_the_tutorials(
    tiny_bert: Path, client: httpx.Client, merged: bool
) -> None:
    model = trained(tiny_bert, rank=4, alpha=16)
    answer = client.put("/adapters/tut?layout=tutorial&alpha=16", content=saved(model))
    assert answer.status_code in (200, 201), answer.text
    assert answer.json()["targets"] == {"query": 2, "key": 2, "value": 2, "dense": 7}
    if merged:
        client.post("/adapters/tut/merge")
    check(client, tiny_bert, model, "tut")
    client.delete("/adapters/tut")


def test_the_served_output_is_the_tutorials_on_the_embedded_base(
    minilm: Path, minilm_server: LiveServer
) -> None:
    model = trained(minilm, rank=8, alpha=16)
    client = minilm_server.client
    answer = client.put("/adapters/tut?layout=tutorial&alpha=16", content=saved(model))
    assert answer.json()["tensors"] == {"in_file": 74, "used": 74, "ignored": []}
    check(client, minilm, model, "tut")


@torch.inference_mode()
def check(client: httpx.Client, folder: Path, model: nn.Module, name: str) -> None:
    """Mean-pooled and pooler embeddings, both not normalised, against the tutorial's model."""
    length = client.get("/info").json()["max_input_length"]
    for pooling in ("mean", "pooler"):
        body = {"inputs": SENTENCES, "normalize": False, "pooling": pooling}
        served = torch.tensor(client.post(f"/embed?adapter={name}", json=body).json())
        rows = [encode(folder, t, length) for t in SENTENCES]
        wanted = [
            mean_embedding(model, r, normalize=False)
            if pooling == "mean"
            else model(**r).pooler_output[0]
            for r in rows
        ]
        assert_close(served, torch.stack(wanted), **FP32)


def test_swapped_letters_are_told_by_their_shapes(tiny_bert: Path, client: httpx.Client) -> None:
    model = trained(tiny_bert, rank=4, alpha=16)
    tensors = {n: p.detach() for n, p in model.named_parameters() if ".lora." in n}
    swap = {"A": "B", "B": "A"}
    swapped = {n[:-1] + swap[n[-1]]: t.contiguous() for n, t in tensors.items()}
    answer = client.put("/adapters/swapped?alpha=16", content=save(swapped))
    assert answer.json()["layout"] == "tutorial-swapped"
    check(client, tiny_bert, model, "swapped")
    client.delete("/adapters/swapped")


def test_square_shapes_alone_ask_for_the_layout(tiny_bert: Path, client: httpx.Client) -> None:
    model = trained(tiny_bert, rank=32, alpha=16)
    square = {
        n: p.detach().contiguous()
        for n, p in model.named_parameters()
        if ".lora." in n and "query" in n
    }
    answer = client.put("/adapters/square?alpha=16", content=save(square))
    assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_rejected")
    assert "layout=tutorial" in answer.json()["error"]
    named = client.put("/adapters/square?alpha=16&layout=tutorial", content=save(square))
    assert named.status_code == 201
    client.delete("/adapters/square")


def test_an_untrained_adapter_is_refused_as_doing_nothing(
    tiny_bert: Path, client: httpx.Client
) -> None:
    model = trained(tiny_bert, rank=4, alpha=16, steps=0)
    answer = client.put("/adapters/noop?layout=tutorial&alpha=16", content=saved(model))
    assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_rejected")
    assert "unchanged" in answer.json()["error"]
    meant = client.put(
        "/adapters/noop?layout=tutorial&alpha=16&allow_noop=true", content=saved(model)
    )
    assert meant.status_code == 201
    plain, noop = (
        client.post(f"/embed{q}", json={"inputs": "good"}).json() for q in ("", "?adapter=noop")
    )
    assert noop == plain
    client.delete("/adapters/noop")
