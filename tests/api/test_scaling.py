"""Which scale a LoRA was given, by which formula, is said; and it can be given outright."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save
from torch.testing import assert_close
from transformers import AutoModel

from tests.adapters.made import TINY_LINEARS, peft_tensors, tutorial_tensors
from tests.kinds import KINDS, NAMES, make_kind
from tests.oracles import FP32, encode, files_of, mean_embedding, put

SCALE = 0.7  # no alpha / r of anybody's
RANK = 4


def spelled(layout: str) -> tuple[dict[str, torch.Tensor], dict[str, tuple[str, str]]]:
    """A file of this layout, and the names of each layer's A [r, in] and B [out, r] before
    turning.
    """
    if layout == "tutorial":
        return tutorial_tensors(RANK), {p: (f"{p}.lora.B", f"{p}.lora.A") for p in TINY_LINEARS}
    peft = peft_tensors(RANK)
    before = "base_model.model."
    paths = sorted({name.removeprefix(before).split(".lora_")[0] for name in peft})
    ends = {
        "peft": ("lora_A.weight", "lora_B.weight"),
        "loralib": ("lora_A", "lora_B"),
        "minlora": ("parametrizations.weight.0.lora_A", "parametrizations.weight.0.lora_B"),
    }[layout]
    start = before if layout == "peft" else ""
    names = {p: (f"{start}{p}.{ends[0]}", f"{start}{p}.{ends[1]}") for p in paths}
    tensors = {}
    for path, pair in names.items():
        for letter, name in zip("AB", pair, strict=True):
            tensors[name] = peft[f"{before}{path}.lora_{letter}.weight"]
    return tensors, names


@pytest.mark.parametrize("layout", ["tutorial", "peft", "loralib", "minlora"])
def test_a_scale_that_is_given_outright_is_a_hand_merge_with_it(
    client: httpx.Client, tiny_bert: Path, layout: str
) -> None:
    tensors, names = spelled(layout)
    body = save(tensors)
    missing = client.put("/adapters/scaled", content=body).json()["error"]
    assert "?alpha=16" in missing and "?scale=2" in missing
    answer = client.put(f"/adapters/scaled?scale={SCALE}", content=body).json()
    assert answer["scaling"] == [{"formula": "the query's scale", "scale": SCALE}]
    assert answer["scale"] == SCALE
    model = AutoModel.from_pretrained(tiny_bert).eval()
    with torch.no_grad():
        for path, (a, b) in names.items():
            A, B = tensors[a], tensors[b]
            A, B = (A.T, B.T) if layout == "tutorial" else (A, B)
            model.get_submodule(path).weight += SCALE * B @ A
    wanted = mean_embedding(model, encode(tiny_bert, "my card", 80))
    got = torch.tensor(client.post("/embed?adapter=scaled", json={"inputs": "my card"}).json()[0])
    assert_close(got, wanted, **FP32)
    folder = client.get("/adapters/scaled/files").content
    again = client.put("/adapters/again", content=folder).json()
    assert again["scale"] == pytest.approx(SCALE)
    back = torch.tensor(client.post("/embed?adapter=again", json={"inputs": "my card"}).json()[0])
    assert_close(back, wanted, **FP32)


@pytest.mark.parametrize(
    ("kind", "formulas"),
    [
        ("plain", [("alpha / r", 8, 4, 2.0)]),
        ("rslora", [("alpha / sqrt(r)", 8, 4, 4.0)]),
        ("patterns", [("alpha / r", 8, 3, 8 / 3), ("alpha / r", 32, 2, 16.0)]),
        ("embedding", [("alpha / r", 8, 4, 2.0)]),
        ("loha", [("alpha / r", 3, 2, 1.5)]),
        ("lokr", [("alpha / r", 3, 2, 1.5)]),
        ("adalora", [("alpha / (init_r + 1e-5)", 5, 6, 5 / (6 + 1e-5))]),
        ("fourierft", [("the config's scaling", None, None, 150.0)]),
        ("ia3", []),
        ("vera", []),
        ("oft", []),
        ("ln tuning", []),
    ],
)
def test_the_answer_says_which_formula_was_applied_with_which_numbers(
    client: httpx.Client, tiny_bert: Path, tmp_path: Path, kind: str, formulas: Any
) -> None:
    config = KINDS[kind](NAMES["bert"])
    answer = put(
        client, "formula", make_kind(kind, "bert", tiny_bert, tmp_path / "a", config=config)
    )
    found = [(s["formula"], s.get("alpha"), s.get("r"), s["scale"]) for s in answer["scaling"]]
    assert [f[:3] for f in found] == [f[:3] for f in formulas]
    assert [f[3] for f in found] == pytest.approx([f[3] for f in formulas])
    if kind in ("ia3", "adalora", "fourierft"):
        refused = client.put(f"/adapters/formula?scale={SCALE}", files=files_of(tmp_path / "a"))
        assert refused.status_code == 422


def test_a_scale_that_disagrees_with_what_the_file_says_is_refused(
    client: httpx.Client, tiny_bert: Path, tmp_path: Path
) -> None:
    folder = make_kind("plain", "bert", tiny_bert, tmp_path / "a")  # alpha 8, r 4
    for query, status in (("scale=2", 200), ("scale=2.1", 422), ("scale=2&alpha=8", 422)):
        answer = client.put(f"/adapters/both?dry_run=true&{query}", files=files_of(folder))
        assert answer.status_code == status, (query, answer.text)
    tensors = load_file(folder / "adapter_model.safetensors")
    body = save(tensors, {"alpha": json.dumps(8)})
    for query, status in (("scale=2", 200), ("scale=3", 422), ("scale=0", 422), ("scale=nan", 422)):
        answer = client.put(f"/adapters/both?dry_run=true&{query}", content=body)
        assert answer.status_code == status, (query, answer.text)
