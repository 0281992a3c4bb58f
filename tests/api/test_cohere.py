"""Cohere's /v1/embed and /v2/embed, and Jina's members of /v1/embeddings, against /embed."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.live import LiveServer
from tests.oracles import make_adapter

TEXTS = ["the card is lost", "a good film"]
PROMPTS = {"query": "where is ", "document": "text: ", "classification": "class: "}


@pytest.fixture(scope="module")
def prompted(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_adapter(tiny_bert, tmp_path_factory.mktemp("prompted") / "p", 7, scale=4)
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}))
    return folder


@pytest.fixture
def client(tiny_server: LiveServer, prompted: Path) -> Iterator[httpx.Client]:
    files = {path.name: (path.name, path.read_bytes()) for path in prompted.iterdir()}
    answer = tiny_server.client.put("/adapters/p", files=files)
    assert answer.status_code in (200, 201), answer.text
    yield tiny_server.client
    tiny_server.client.delete("/adapters/p")


def asked(client: httpx.Client, path: str, **members: Any) -> dict[str, Any]:
    known = {"model": "p", "input_type": "clustering", "texts": TEXTS}
    answer = client.post(path, json={**known, **members})
    assert answer.status_code == 200, answer.text
    return answer.json()


def native(client: httpx.Client, **members: Any) -> list[list[float]]:
    body = {"inputs": TEXTS, **members}
    return client.post("/embed?adapter=p", json=body).raise_for_status().json()


def test_both_versions_give_the_native_route_s_vectors(client: httpx.Client) -> None:
    first, second = asked(client, "/v1/embed"), asked(client, "/v2/embed")
    assert first["embeddings"] == second["embeddings"]["float"] == native(client)
    assert first["response_type"] == "embeddings_floats"
    assert second["response_type"] == "embeddings_by_type"
    assert first["texts"] == second["texts"] == TEXTS
    assert second["meta"]["billed_units"]["input_tokens"] > 0
    typed = asked(client, "/v1/embed", embedding_types=["float"])
    assert typed["embeddings"] == second["embeddings"]


def test_each_embedding_type_says_the_same_vector(client: httpx.Client) -> None:
    kinds = ["float", "base64", "binary", "ubinary"]
    by_kind = asked(client, "/v2/embed", embedding_types=kinds)["embeddings"]
    assert list(by_kind) == kinds
    for i in range(len(TEXTS)):
        vector = np.array(by_kind["float"][i], "<f4")
        assert base64.b64decode(by_kind["base64"][i]) == vector.tobytes()
        bits = "".join(f"{byte:08b}" for byte in by_kind["ubinary"][i])
        assert [bit == "1" for bit in bits] == (vector > 0).tolist()
        assert [byte - 128 for byte in by_kind["ubinary"][i]] == by_kind["binary"][i]


@pytest.mark.parametrize(
    ("input_type", "prompt"),
    [
        ("search_query", "where is "),
        ("search_document", "text: "),
        ("classification", "class: "),
        ("clustering", ""),
    ],
)
def test_input_type_chooses_the_prompt_of_its_purpose(
    client: httpx.Client, input_type: str, prompt: str
) -> None:
    vectors = asked(client, "/v2/embed", input_type=input_type)["embeddings"]["float"]
    assert vectors == native(client, prompt=prompt)


def test_a_text_that_is_too_long_is_cut_at_the_end_that_is_named(client: httpx.Client) -> None:
    long = [" ".join(["card"] * 600 + ["film"] * 600)]
    for truncate, direction in (("START", "left"), ("END", "right")):
        body = {"inputs": long, "truncation_direction": direction}
        wanted = client.post("/embed?adapter=p", json=body).json()
        assert asked(client, "/v1/embed", texts=long, truncate=truncate)["embeddings"] == wanted
    refused = client.post("/v1/embed", json={"model": "p", "texts": long, "truncate": "NONE"})
    assert (refused.status_code, refused.json()["problems"][0]["field"]) == (400, "texts[0]")


def test_output_dimension_keeps_the_first_ones(client: httpx.Client) -> None:
    cut = asked(client, "/v2/embed", output_dimension=8)["embeddings"]["float"]
    assert cut == native(client, dimensions=8)


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"embedding_types": ["float", "int8"]}, "embedding_types[1]"),
        ({"images": ["data:image/png;base64,AA=="]}, "images"),
        ({"inputs": [{"content": []}]}, "inputs"),
        ({"input_type": "image"}, "input_type"),
        ({"max_tokens": 4}, "max_tokens"),
        ({"texts": ["a", ""]}, "texts[1]"),
        ({"texts": []}, "texts"),
        ({"truncate": "MIDDLE"}, "truncate"),
        ({"priority": 3}, "priority"),
        ({"input_type": None}, "input_type"),
    ],
)
def test_what_is_not_honoured_is_refused_by_its_name(
    client: httpx.Client, members: dict[str, Any], field: str
) -> None:
    known = {"model": "p", "input_type": "clustering", "texts": TEXTS}
    answer = client.post("/v2/embed", json={**known, **members})
    assert answer.status_code == 400, answer.text
    assert answer.json()["problems"][0]["field"] == field
    assert answer.json()["message"] == answer.json()["error"]["message"]


def test_a_model_of_cohere_s_is_not_found(client: httpx.Client) -> None:
    body = {"model": "embed-v4.0", "input_type": "search_query", "texts": TEXTS}
    assert client.post("/v2/embed", json=body).status_code == 404
    assert client.post("/a/p/v2/embed", json=body).headers["x-adapter"].startswith("p@")


def openai(client: httpx.Client, **members: Any) -> httpx.Response:
    return client.post("/v1/embeddings", json={"model": "p", "input": TEXTS, **members})


def vectors(answer: httpx.Response) -> list[Any]:
    return [entry["embedding"] for entry in answer.raise_for_status().json()["data"]]


def test_jina_s_members_are_honoured(client: httpx.Client) -> None:
    objects = [{"text": text} for text in TEXTS]
    assert vectors(openai(client, input=objects, late_chunking=False)) == native(client)
    assert vectors(openai(client, normalized=False)) == native(client, normalize=False)
    bits = asked(client, "/v2/embed", embedding_types=["ubinary", "binary"])["embeddings"]
    for kind in ("ubinary", "binary"):
        assert vectors(openai(client, embedding_type=kind)) == bits[kind]


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"late_chunking": True}, "late_chunking"),
        ({"embedding_type": "int8"}, "embedding_type"),
        ({"input": [{"image": "x"}]}, "input[0]"),
    ],
)
def test_jina_s_other_members_are_refused_by_name(
    client: httpx.Client, members: dict[str, Any], field: str
) -> None:
    answer = openai(client, **members)
    assert answer.status_code == 400
    assert answer.json()["problems"][0]["field"] == field
