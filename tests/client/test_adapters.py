"""put takes folders, files and models, and what it serves is what they answer themselves."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForSequenceClassification

from bert_lora import AsyncClient, Client, Conflict, NotFound, Unavailable, Unreadable
from bert_lora.errors import refused
from tests.api.test_tutorial import trained
from tests.client.conftest import Served
from tests.oracles import (
    FP32,
    SENTENCES,
    encode,
    mean_embedding,
    peft_embeddings,
    peft_logits,
    randomise,
)

TEXTS = SENTENCES[:4]


@pytest.fixture
def client(served: Served) -> Client:
    return served.client


def test_a_folder_is_served_as_peft_loads_it(
    served: Served, tiny_bert: Path, client: Client, tmp_path: Path
) -> None:
    adapter = client.put("folder", served.folders["tuned"])
    assert adapter["name"] == "folder"
    vectors = client.embed(TEXTS, adapter="folder")
    wanted = peft_embeddings(tiny_bert, served.folders["tuned"], TEXTS)
    assert_close(torch.from_numpy(vectors.copy()), wanted, **FP32)
    assert client.put("folder", str(served.folders["tuned"]))["unchanged"]


def test_of_a_folder_only_the_adapters_own_files_are_sent(
    served: Served, client: Client, tmp_path: Path
) -> None:
    for file in served.folders["tuned"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "optimizer.pt").write_bytes(b"state")
    adapter = client.put("trained", tmp_path)
    assert adapter["warnings"] == client.put("folder", served.folders["tuned"])["warnings"]


def test_a_peft_model_is_served_as_it_answers(client: Client, tiny_bert: Path) -> None:
    torch.manual_seed(5)
    model = get_peft_model(
        AutoModel.from_pretrained(tiny_bert),
        LoraConfig(r=4, lora_alpha=8, target_modules=["query", "dense"]),
        adapter_name="mine",
    ).eval()
    randomise(model)
    client.put("model", model)
    wanted = torch.stack([mean_embedding(model, encode(tiny_bert, t, 256)) for t in TEXTS])
    assert_close(torch.from_numpy(client.embed(TEXTS, adapter="model").copy()), wanted, **FP32)


def test_a_peft_classifier_keeps_its_labels_and_its_activation(
    client: Client, tiny_bert: Path
) -> None:
    torch.manual_seed(6)
    labels = {0: "late", 1: "lost", 2: "fine"}
    base = AutoModelForSequenceClassification.from_pretrained(
        tiny_bert, num_labels=3, id2label=labels, problem_type="multi_label_classification"
    )
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, task_type=TaskType.SEQ_CLS)).eval()
    randomise(model)
    client.put("classes", model)
    with torch.inference_mode():
        logits = torch.cat([model(**encode(tiny_bert, t, 256)).logits for t in TEXTS])
    for answer, wanted in zip(client.classify(TEXTS, adapter="classes"), logits, strict=True):
        scores = {each["label"]: each["score"] for each in answer}
        assert_close(torch.tensor([scores[labels[i]] for i in range(3)]), wanted.sigmoid(), **FP32)


def test_the_lora_tensors_of_a_module_are_served_as_it_answers(
    client: Client, tiny_bert: Path
) -> None:
    model = trained(tiny_bert, rank=4, alpha=8)
    with pytest.raises(Exception, match="alpha"):
        client.put("module", model)
    client.put("module", model, alpha=8)
    wanted = torch.stack([mean_embedding(model, encode(tiny_bert, t, 256)) for t in TEXTS])
    assert_close(torch.from_numpy(client.embed(TEXTS, adapter="module").copy()), wanted, **FP32)


@pytest.mark.parametrize("source", ["/nowhere/at/all", 3, torch.nn.Linear(2, 2)])
def test_what_is_no_adapter_is_refused_before_it_is_sent(client: Client, source: Any) -> None:
    with pytest.raises(Unreadable):
        client.put("no", source)


def test_a_pickle_is_refused_with_what_to_do(client: Client, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(Unreadable, match="safe_serialization=True"):
        client.put("no", tmp_path)


def test_a_sum_is_asked_for_and_kept(served: Served, client: Client) -> None:
    client.put("one", served.folders["tuned"])
    client.put("two", served.folders["other"])
    kept = client.compose("sum", ["one", "two"], weights=[0.7, -0.2])
    assert "exact" in kept["warnings"][0]
    asked = client.embed(["a text", "and another"], adapter="one:0.7+two:-0.2")
    assert np.abs(asked - client.embed(["a text", "and another"], adapter="sum")).max() < 1e-5
    pruned = client.compose("sum", ["one", "two"], combination_type="ties", density=0.5, svd_rank=2)
    assert pruned["rank"] == 2
    for name in ("one", "two", "sum"):
        client.delete(name)


def test_a_names_life(served: Served, client: Client) -> None:
    first = client.put("life", served.folders["tuned"])["version"]
    second = client.put("life", served.folders["other"], tokens_per_s=1e6)["version"]
    assert client.get("life")["tokens_per_s"] == 1e6
    assert [v["version"] for v in client.versions("life")] == [first, second]
    assert client.rollback("life")["version"] == first
    assert client.rollback("life", second[:12])["version"] == second
    assert client.merge("life")["merged"]
    assert not client.unmerge("life")["merged"]
    assert client.canary("life", first, 10, sticky_by="client")["trial"]["percent"] == 10
    assert client.abort("life")["trial"] is None
    client.canary("life", first, 10)
    assert client.promote("life")["version"] == first
    with pytest.raises(Conflict) as caught:
        client.promote("life")
    assert caught.value.code == "no_trial"
    assert "life" in [adapter["name"] for adapter in client.list()]
    client.delete("life")
    with pytest.raises(NotFound):
        client.get("life")


def test_a_long_list_is_read_to_its_end(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [adapter["name"] for adapter in client.list()]
    monkeypatch.setattr("bert_lora.async_client.PAGE", 2)
    assert [adapter["name"] for adapter in client.list()] == whole
    assert len(whole) > 2


def test_a_dry_run_changes_nothing(served: Served, client: Client) -> None:
    report = client.put("dry", served.folders["rank"], dry_run=True)
    assert report["dry_run"]
    assert "dry" not in [adapter["name"] for adapter in client.list()]


def test_a_rankers_logits_are_pefts(served: Served, client: Client, tiny_bert: Path) -> None:
    ranking = client.rerank(TEXTS[0], TEXTS, adapter="rank", raw_scores=True)
    pairs = [(TEXTS[0], text) for text in TEXTS]
    wanted = peft_logits(tiny_bert, served.folders["rank"], 1, pairs)[:, 0]
    scores = np.zeros(4, np.float32)
    for place in ranking:
        scores[place["index"]] = place["score"]
    assert_close(torch.from_numpy(scores), wanted, **FP32)


def test_a_store_that_has_gone_back_is_not_held_against_the_server(
    served: Served, client: Client
) -> None:
    """Where it was restored, the name is at an earlier revision than this client has left it at."""
    client.put("back", served.folders["tuned"])
    wanted = client.embed(TEXTS, adapter="back")
    assert isinstance(client.core, AsyncClient)
    for ask in (lambda: client.get("back"), lambda: client.embed(TEXTS, adapter="back")):
        client.core._revisions.note("back", 99)
        ask()
        assert client.core._revisions.within(["back"]) == {}
    assert np.array_equal(client.embed(TEXTS, adapter="back"), wanted)


@pytest.mark.parametrize(("error_type", "times"), [("change_unsure", 1), ("store_unavailable", 2)])
def test_an_upload_is_repeated_unless_it_may_have_been_made(
    served: Served, client: Client, monkeypatch: pytest.MonkeyPatch, error_type: str, times: int
) -> None:
    """Others may have changed the name in between: a repetition would undo that."""
    assert isinstance(client.core, AsyncClient)
    server, send, seen = client.core._server, client.core._server.send, []

    async def refuses_first(*args: Any, **more: Any) -> Any:
        seen.append(args)
        if len(seen) == 1:
            raise refused(503, {"error_type": error_type, "error": "?"})
        return await send(*args, **more)

    client.get("rank")  # the server is known, and waited for
    monkeypatch.setattr(server, "send", refuses_first)
    with contextlib.nullcontext() if times == 2 else pytest.raises(Unavailable):
        client.put("again", served.folders["rank"])
    assert len(seen) == times
