"""Infinity's calls below /infinity, against the native routes."""

from __future__ import annotations

import base64
import time
from typing import Any

import httpx
import numpy as np
import pytest

UNNAMED = "default/not-specified"
TEXTS = ["the card is lost", "a good film"]
SENT = {"encoding_format": "float", "dimensions": 0, "modality": "text"}  # by its client


def native(client: httpx.Client, path: str, **members: Any) -> Any:
    return client.post(path, json={"inputs": TEXTS, **members}).raise_for_status().json()


@pytest.mark.parametrize(("model", "adapter"), [("a", "a"), (UNNAMED, "base")])
def test_embeddings_are_the_native_route_s(served: httpx.Client, model: str, adapter: str) -> None:
    body = {"input": TEXTS, "model": model, "user": "me", **SENT}
    answer = served.post("/infinity/embeddings", json=body).raise_for_status().json()
    vectors = [entry["embedding"] for entry in answer["data"]]
    assert vectors == native(served, f"/embed?adapter={adapter}")
    assert answer["object"] == "list"
    assert abs(answer["created"] - time.time()) < 600


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_dimensions_keep_the_first_ones_as_they_are_and_one_text_may_be_bare(
    served: httpx.Client, encoding: str
) -> None:
    body = {"input": TEXTS[0], "model": "a", "dimensions": 4, "encoding_format": encoding}
    (item,) = served.post("/infinity/embeddings", json=body).json()["data"]
    vector = item["embedding"]
    if encoding == "base64":
        vector = np.frombuffer(base64.b64decode(vector), "<f4")
    whole = native(served, "/embed?adapter=a", inputs=TEXTS[:1])[0]
    assert list(vector) == pytest.approx(whole[:4], abs=1e-6)


@pytest.mark.parametrize("raw", [False, True])
def test_classify_answers_each_text_s_labels(served: httpx.Client, raw: bool) -> None:
    body = {"input": TEXTS, "model": "c", "raw_scores": raw}
    answer = served.post("/infinity/classify", json=body).raise_for_status().json()
    assert answer["data"] == native(served, "/classify?adapter=c", raw_scores=raw)
    assert (answer["object"], answer["model"]) == ("classify", "c")


def test_models_are_the_base_and_every_adapter_with_what_it_can_do(served: httpx.Client) -> None:
    data = served.get("/infinity/models").raise_for_status().json()["data"]
    able = {model["id"]: model["capabilities"] for model in data[1:]}
    assert able == {"a": ["embed"], "b": ["embed"], "c": ["embed", "classify"]}
    assert data[0]["capabilities"] == ["embed"]
    assert all(isinstance(model["stats"], dict) for model in data)


def test_health_tells_the_time(served: httpx.Client) -> None:
    assert abs(served.get("/infinity/health").json()["unix"] - time.time()) < 600


@pytest.mark.parametrize(
    ("path", "members", "place"),
    [
        ("embeddings", {"input": TEXTS, "modality": "image"}, "modality"),
        ("embeddings", {"input": ["a", ""]}, "input[1]"),
        ("embeddings", {"input": []}, "input"),
        ("embeddings", {"input": TEXTS, "dimensions": 999}, "dimensions"),
        ("classify", {"input": "bare"}, "input"),
        ("rerank", {"query": "q", "documents": TEXTS, "top_n": 0}, "top_n"),
        ("rerank", {"query": "q", "documents": ["a", ""]}, "documents[1]"),
    ],
)
def test_what_is_wrong_stands_in_the_detail_that_its_client_reads(
    served: httpx.Client, path: str, members: dict[str, Any], place: str
) -> None:
    answer = served.post(f"/infinity/{path}", json=members)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", place]
    assert answer.json()["detail"][0]["msg"]


@pytest.mark.parametrize(("model", "kind"), [("nobody", "adapter_not_found"), ("a", "no_head")])
def test_a_model_that_cannot_is_a_400_as_infinity_has_it(
    served: httpx.Client, model: str, kind: str
) -> None:
    answer = served.post("/infinity/classify", json={"input": TEXTS, "model": model})
    assert (answer.status_code, answer.json()["error_type"]) == (400, kind)
    assert answer.json()["error"]["message"]


def test_a_head_of_another_sort_is_a_400_too(served: httpx.Client) -> None:
    body = {"query": "q", "documents": TEXTS, "model": "c"}
    answer = served.post("/infinity/rerank", json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (400, "validation")
