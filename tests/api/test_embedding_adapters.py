"""Embedding adapters carry how their vectors are made: pooling, length, prompts, dimensions,
space.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModel

from tests.kinds import make_kind
from tests.oracles import FP32, encode, put

TEXTS = ["the card is lost", "how good is my money film? my love, my card " * 3]


@pytest.fixture(scope="module")
def folder(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As sentence-transformers saves a model with an adapter: its modules' folders beside."""
    folder = make_kind("dora", "bert", tiny_bert, tmp_path_factory.mktemp("st"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(
            [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        )
    ]
    files: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_max_tokens": True,
                                  "pooling_mode_mean_tokens": False, "include_prompt": True},
        "2_Normalize/config.json": {},
        "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "where is ", "document": ""}, "default_prompt_name": "query",
            "similarity_fn_name": "cosine",
        },
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "README.md").write_text("# a card")
    return folder


def packed(folder: Path, prefix: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.add(folder, arcname=prefix or ".")
    return out.getvalue()


@torch.inference_mode()
def reference(base: Path, folder: Path, text: str) -> Tensor:
    """max over the tokens of the prompted text cut to 16, length 1."""
    tuned = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder).eval()
    rows = tuned(**encode(base, text, 16)).last_hidden_state[0]
    return F.normalize(rows.amax(0), dim=0)


@pytest.fixture
def served(client: httpx.Client, folder: Path) -> Iterator[httpx.Client]:
    answer = client.put("/adapters/st", content=packed(folder, "model-1"))
    assert answer.status_code in (200, 201), answer.text
    yield client
    client.delete("/adapters/st")


def test_a_sentence_transformers_folder_says_how_its_vectors_are_made(
    served: httpx.Client, tiny_bert: Path, folder: Path
) -> None:
    report = served.get("/adapters/st").json()
    said = {k: report[k] for k in ("pooling", "normalize", "max_length", "prompts")}
    assert said == {
        "pooling": "max", "normalize": True, "max_length": 16,
        "prompts": {"query": "where is ", "document": ""},
    }  # fmt: skip
    got = torch.tensor(served.post("/embed?adapter=st", json={"inputs": TEXTS}).json())
    wanted = torch.stack([reference(tiny_bert, folder, f"where is {t}") for t in TEXTS])
    assert_close(got, wanted, **FP32)
    body = {"inputs": TEXTS, "prompt_name": "document"}
    got = torch.tensor(served.post("/embed?adapter=st", json=body).json())
    assert_close(got, torch.stack([reference(tiny_bert, folder, t) for t in TEXTS]), **FP32)
    alone = served.post("/embed", json={"inputs": TEXTS}).json()
    mixed = served.post("/embed", json={"inputs": TEXTS, "adapters": [None, "st"]}).json()
    assert mixed[0] == alone[0]
    assert mixed[1] == pytest.approx(
        served.post("/embed?adapter=st", json={"inputs": TEXTS}).json()[1], abs=1e-6
    )
    unknown = served.post("/embed?adapter=st", json={"inputs": "a", "prompt_name": "passage"})
    assert (unknown.status_code, "document, query" in unknown.json()["error"]) == (422, True)


def test_openais_route_uses_the_adapters_own_way(served: httpx.Client) -> None:
    native = served.post("/embed?adapter=st", json={"inputs": TEXTS}).json()
    openai = served.post("/v1/embeddings", json={"input": TEXTS, "model": "st"}).json()
    assert [e["embedding"] for e in openai["data"]] == native


def test_its_folder_comes_back_whole(served: httpx.Client, folder: Path) -> None:
    given = served.get("/adapters/st/files").content
    with tarfile.open(fileobj=io.BytesIO(given)) as archive:
        names = set(archive.getnames())
    assert {"modules.json", "1_Pooling/config.json", "sentence_bert_config.json"} <= names
    again = served.put("/adapters/st2", content=given).json()
    first = served.get("/adapters/st").json()
    assert {k: again[k] for k in ("pooling", "max_length", "prompts")} == {
        k: first[k] for k in ("pooling", "max_length", "prompts")
    }
    served.delete("/adapters/st2")


def test_a_folder_of_modules_that_are_not_served_is_refused(
    client: httpx.Client, folder: Path, tmp_path: Path
) -> None:
    for name, content, word in [
        (
            "modules.json",
            [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}],
            "Dense",
        ),
        ("modules.json", {"a": 1}, "list of modules"),
        ("1_Pooling/config.json", {"pooling_mode_weightedmean_tokens": True}, "pooling"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_cls_token": True, "include_prompt": False},
            "prompt",
        ),
        ("sentence_bert_config.json", {"do_lower_case": True}, "lowers"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "none of its prompts"),
        ("config_sentence_transformers.json", {"default_prompt_name": []}, "default_prompt_name"),
        ("config_sentence_transformers.json", {"prompts": {"q": "\ud800"}}, "surrogate"),
        ("config_sentence_transformers.json", {"truncate_dim": "8"}, "truncate_dim"),
        ("sentence_bert_config.json", {"max_seq_length": 2}, "max_seq_length"),
        ("sentence_bert_config.json", {"max_seq_length": "12"}, "max_seq_length"),
        ("sentence_bert_config.json", {"do_lower_case": 1}, "do_lower_case"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "pooling_mode"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": False}, "not one of"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": 1}, "pooling_mode_cls_token"),
        ("modules.json", [{"type": "x.Pooling", "path": "1_Pooling"}], "missing"),
        ("modules.json", [{"type": "x.Pooling", "path": "2_Pooling"}], "1_Pooling"),
        ("modules.json", [{"type": "x.Pooling", "path": "1_Pooling"}] * 2, "twice"),
    ]:
        copy = tmp_path / f"{abs(hash((name, word, str(content))))}"
        copy.mkdir()
        (copy / "1_Pooling").mkdir()
        for path in ("adapter_model.safetensors", "adapter_config.json"):
            (copy / path).write_bytes((folder / path).read_bytes())
        (copy / name).write_text(json.dumps(content))
        answer = client.put("/adapters/bad", content=packed(copy))
        assert (answer.status_code, word in answer.text) == (422, True), answer.text


def test_an_adapter_is_cut_only_to_the_dimensions_it_was_trained_for(
    client: httpx.Client, tiny_bert: Path, tmp_path: Path
) -> None:
    folder = make_kind("plain", "bert", tiny_bert, tmp_path / "a")
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dimensions": [8, 16]}))
    assert put(client, "m", folder)["dimensions"] == [8, 16]
    whole = client.post("/embed?adapter=m", json={"inputs": TEXTS}).json()
    cut = client.post("/embed?adapter=m", json={"inputs": TEXTS, "dimensions": 8}).json()
    assert_close(torch.tensor(cut), F.normalize(torch.tensor(whole)[:, :8], dim=1), **FP32)
    answer = client.post("/embed?adapter=m", json={"inputs": TEXTS, "dimensions": 9})
    assert (answer.status_code, "8, 16" in answer.json()["error"]) == (422, True)
    openai = client.post("/v1/embeddings", json={"input": "a", "model": "m", "dimensions": 9})
    assert openai.status_code == 400
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dimensions": [64]}))
    files = {p.name: (p.name, p.read_bytes()) for p in folder.iterdir() if p.name != "README.md"}
    assert client.put("/adapters/m", files=files).status_code == 422
    client.delete("/adapters/m")


def test_vectors_that_must_not_be_compared_have_different_spaces(
    served: httpx.Client, tiny_bert: Path, tmp_path: Path
) -> None:
    def space(path: str, **body: Any) -> str:
        answer = served.post(path, json={"inputs": "card", **body})
        return str(answer.headers["x-embedding-space"])

    digest = served.get("/info").json()["base"]["digest"]
    report = served.get("/adapters/st").json()
    mine = f"{digest[:16]}+{report['version'][:16]}"
    assert space("/embed") == digest[:16] == served.get("/info").json()["embedding_space"]
    assert space("/embed?adapter=st") == mine == report["embedding_space"]
    assert space("/embed?adapter=st", prompt_name="document", normalize=False) == mine
    assert space("/embed?adapter=st", pooling="max") == mine
    assert space("/embed?adapter=st", pooling="cls") == f"{mine};pooling=cls"
    assert space("/embed?adapter=st&adapter=base") == f"{mine}, {digest[:16]}"
    openai = served.post("/v1/embeddings", json={"input": "a", "model": "st"})
    assert openai.headers["x-embedding-space"] == mine
    served.post("/adapters/st/merge")
    assert space("/embed?adapter=st") == mine
