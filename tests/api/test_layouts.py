"""LoRA that PEFT did not write: loralib, minLoRA, AdapterHub, the tutorial with its frozen weights.

The oracle is the plain transformers model with W + (alpha / r) B A put in by hand, in float64.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModel

from tests.adapters.made import tutorial_tensors
from tests.conftest import Serve
from tests.kinds import make_kind, peft_answers
from tests.oracles import FP32, encode, put
from tests.tiny import save_tiny_base

TEXTS = ["the card is lost", "how good is my money film?"]
RANK, ALPHA = 4, 6
LINEARS = [
    f"encoder.layer.{i}.{name}"
    for i in (0, 1)
    for name in ("attention.self.query", "attention.self.value", "intermediate.dense")
]
WORDS = "embeddings.word_embeddings"
Pairs = dict[
    str, tuple[Tensor, Tensor]
]  # path -> A [r, in], B [out, r]; for WORDS A [r, num], B [dim, r]


def loralib(pairs: Pairs, base: Path) -> dict[str, Tensor]:
    return {
        f"bert.{p}.lora_{x}": t
        for p, pair in pairs.items()
        for x, t in zip("AB", pair, strict=True)
    }


def minlora(pairs: Pairs, base: Path) -> dict[str, Tensor]:
    found = {}
    for path, (A, B) in pairs.items():
        a, b = (A.T, B.T) if path == WORDS else (A, B)
        found[f"{path}.parametrizations.weight.0.lora_A"] = a
        found[f"{path}.parametrizations.weight.0.lora_B"] = b
    return found


def minlora_with_originals(pairs: Pairs, base: Path) -> dict[str, Tensor]:
    weights = load_file(base / "model.safetensors")
    originals = {
        f"{path}.parametrizations.weight.original": weights[f"{path}.weight"] for path in pairs
    }
    return {**minlora(pairs, base), **originals}


def adapterhub(pairs: Pairs, base: Path) -> dict[str, Tensor]:
    return {
        f"bert.{p}.loras.mood.lora_{x}": t
        for p, pair in pairs.items()
        for x, t in zip("AB", pair, strict=True)
    }


def tutorial_with_frozen(pairs: Pairs, base: Path) -> dict[str, Tensor]:
    weights = load_file(base / "model.safetensors")
    found = {}
    for path, (A, B) in pairs.items():
        found |= {f"bert.{path}.lora.A": B.T, f"bert.{path}.lora.B": A.T}
        found |= {f"bert.{path}.linear.{x}": weights[f"{path}.{x}"] for x in ("weight", "bias")}
    return found


Make = Callable[[Pairs, Path], dict[str, Tensor]]
LAYOUTS: dict[str, tuple[Make, str, bool]] = {  # how it is written, its name here, embeddings too
    "loralib": (loralib, "loralib", True),
    "minLoRA": (minlora, "minlora", True),
    "minLoRA with originals": (minlora_with_originals, "minlora", True),
    "AdapterHub": (adapterhub, "adapters", False),
    "tutorial with frozen weights": (tutorial_with_frozen, "tutorial", False),
}


def make_pairs(embedding: bool) -> Pairs:
    rng = torch.Generator().manual_seed(4)
    shapes = {p: (64, 32) if "intermediate" in p else (32, 32) for p in LINEARS}
    shapes |= {WORDS: (32, 85)} if embedding else {}
    return {
        p: (torch.randn(RANK, i, generator=rng) * 0.3, torch.randn(o, RANK, generator=rng) * 0.1)
        for p, (o, i) in shapes.items()
    }


def by_hand(base: Path, pairs: Pairs, scale: float) -> Tensor:
    """[N, H], the mean of the last hidden state with the pairs merged in float64."""
    model = AutoModel.from_pretrained(base).double().eval()
    with torch.inference_mode():
        for path, (A, B) in pairs.items():
            delta = scale * (B.double() @ A.double())
            model.get_submodule(path).weight += delta.T if path == WORDS else delta
        rows = [model(**encode(base, t, 80)).last_hidden_state[0].mean(0) for t in TEXTS]
    return torch.stack(rows).float()


def hub_config(**more: Any) -> dict[str, Any]:
    inner = {
        "architecture": "lora", "alpha": ALPHA, "r": RANK, "composition_mode": "add",
        "use_gating": False, "attn_matrices": ["q", "v"], "selfattn_lora": True,
        "intermediate_lora": True, "output_lora": False, "leave_out": [], "dropout": 0.1,
    }  # fmt: skip
    inner |= more.pop("inner", {})
    return {"config": inner, "hidden_size": 32, "model_type": "bert", "model_name": "tiny",
            "name": "mood", "version": "adapters.1.2.0", **more}  # fmt: skip


def upload(client: httpx.Client, layout: str, tensors: dict[str, Tensor], **more: Any) -> Any:
    content = save({k: t.contiguous() for k, t in tensors.items()})
    if layout != "AdapterHub":
        return client.put(f"/adapters/x?alpha={ALPHA}", content=content)
    files = {
        "adapter.safetensors": ("adapter.safetensors", content),
        "adapter_config.json": ("adapter_config.json", json.dumps(hub_config(**more)).encode()),
    }
    return client.put("/adapters/x", files=files)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_the_hand_merge_and_comes_back_as_pefts_folder(
    client: httpx.Client, tiny_bert: Path, tmp_path: Path, layout: str
) -> None:
    make, named, embedding = LAYOUTS[layout]
    pairs = make_pairs(embedding)
    tensors = make(pairs, tiny_bert)
    answer = upload(client, layout, tensors)
    assert answer.status_code in (200, 201), answer.text
    report = answer.json()
    assert (report["layout"], report["rank"], report["scale"]) == (named, RANK, ALPHA / RANK)
    counts = report["tensors"]
    assert counts["in_file"] == len(tensors) == counts["used"] + len(counts["ignored"])
    wanted = by_hand(tiny_bert, pairs, ALPHA / RANK)
    body = {"inputs": TEXTS, "normalize": False}
    assert_close(torch.tensor(client.post("/embed?adapter=x", json=body).json()), wanted, **FP32)
    given = client.get("/adapters/x/files").content
    with tarfile.open(fileobj=io.BytesIO(given)) as archive:
        archive.extractall(tmp_path, filter="data")
    inputs = [encode(tiny_bert, t, 80) for t in TEXTS]
    assert_close(torch.stack(peft_answers(tiny_bert, tmp_path, inputs)), wanted, **FP32)
    again = client.put("/adapters/y", content=given)
    assert (again.status_code, again.json()["layout"]) == (201, "peft"), again.text
    assert_close(torch.tensor(client.post("/embed?adapter=y", json=body).json()), wanted, **FP32)
    for name in "xy":
        client.delete(f"/adapters/{name}")


def test_adapterhubs_old_versions_scale_by_one(client: httpx.Client, tiny_bert: Path) -> None:
    pairs = make_pairs(False)
    answer = upload(client, "AdapterHub", adapterhub(pairs, tiny_bert), version="adapters.1.0.1")
    assert answer.json()["scale"] == 1.0
    client.delete("/adapters/x")


@pytest.mark.parametrize(
    "more",
    [
        {"inner": {"composition_mode": "scale"}},
        {"inner": {"use_gating": True}},
        {"inner": {"architecture": "prefix_tuning"}},
        {"inner": {"output_lora": True}},
        {"model_type": "roberta"},
        {"hidden_size": 768},
        {"version": "adapters.x.y"},
        {"inner": {"use_dora": True}},
        {"frobnicate": 7},
        {"inner": {"leave_out": 5}},
        {"inner": {"attn_matrices": [{}]}},
    ],
)
def test_adapterhubs_other_methods_and_half_files_are_refused(
    client: httpx.Client, tiny_bert: Path, more: dict[str, Any]
) -> None:
    answer = upload(client, "AdapterHub", adapterhub(make_pairs(False), tiny_bert), **more)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_rejected")


@pytest.mark.parametrize("layout", ["minLoRA with originals", "tutorial with frozen weights"])
def test_a_frozen_weight_that_is_not_the_bases_is_refused(
    client: httpx.Client, tiny_bert: Path, layout: str
) -> None:
    tensors = LAYOUTS[layout][0](make_pairs(False), tiny_bert)
    name = next(n for n in tensors if n.endswith((".original", ".linear.weight")))
    tensors[name] = tensors[name] + 0.01
    answer = upload(client, layout, tensors)
    assert answer.status_code == 422
    assert name in {p.get("tensor") for p in answer.json()["problems"]}


@pytest.mark.parametrize("arch", ["roberta", "electra", "modernbert", "distilbert"])
def test_a_bare_file_with_a_head_comes_back_as_pefts_folder(
    serve: Serve, tmp_path: Path, arch: str
) -> None:
    base = save_tiny_base(arch, tmp_path / "base")
    folder = make_kind("dora", arch, base, tmp_path / "a", task="SEQ_CLS")
    tensors = load_file(folder / "adapter_model.safetensors")
    bare = save({k.removeprefix("base_model.model."): t for k, t in tensors.items()})
    client = serve(model=str(base)).client
    query = "alpha=8&labels=a,b,c&problem_type=multi_label_classification"
    assert client.put(f"/adapters/x?{query}", content=bare).status_code == 201
    given = client.get("/adapters/x/files").content
    with tarfile.open(fileobj=io.BytesIO(given)) as archive:
        archive.extractall(tmp_path / "back", filter="data")
    inputs = [encode(base, t, 78) for t in TEXTS]
    wanted = torch.stack(peft_answers(base, folder, inputs, task="SEQ_CLS"))
    assert_close(
        torch.stack(peft_answers(base, tmp_path / "back", inputs, task="SEQ_CLS")), wanted, **FP32
    )
    again = client.put("/adapters/y", content=given).json()
    assert again["labels"] == ["a", "b", "c"]
    texts = {"inputs": TEXTS}
    first, second = (client.post(f"/classify?adapter={n}", json=texts).json() for n in "xy")
    assert first == second


def test_what_the_query_said_stands_after_the_round_trip(
    client: httpx.Client, tiny_bert: Path, tmp_path: Path
) -> None:
    folder = make_kind("plain", "bert", tiny_bert, tmp_path / "a")
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pooling": "max"}))
    assert put(client, "x", folder, pooling="cls")["pooling"] == "cls"
    given = client.get("/adapters/x/files").content
    assert client.put("/adapters/y", content=given).json()["pooling"] == "cls"
    square = {k: t for k, t in tutorial_tensors().items() if "query" in k or "value" in k}
    for name in "xy":
        client.delete(f"/adapters/{name}")
    put_square = client.put("/adapters/x?alpha=6&layout=tutorial", content=save(square))
    assert put_square.status_code == 201
    given = client.get("/adapters/x/files").content
    assert client.put("/adapters/y", content=given).status_code == 201
    body = {"inputs": TEXTS}
    first, second = (client.post(f"/embed?adapter={n}", json=body).json() for n in "xy")
    assert_close(torch.tensor(first), torch.tensor(second), **FP32)
    for name in "xy":
        client.delete(f"/adapters/{name}")
