"""The open inference protocol over HTTP, in JSON and with tensors as bytes, against our numbers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.infer_body import parse_inference
from app.api.refusal import Refusal
from app.api.serving import Serving
from tests.oracles import make_adapter, put

TEXTS = ["good", "a bad film", "ça coûte 3 €"]


def tensor(texts: list[str], name: str = "text", **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(texts)], "data": texts, **more}


def packed(texts: list[str]) -> bytes:
    """As tritonclient's serialize_byte_tensor."""
    return b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)


def infer(client: httpx.Client, model: str, texts: list[str], **more: Any) -> httpx.Response:
    return client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor(texts)], **more})


def in_bytes(
    client: httpx.Client, model: str, texts: list[str], **more: Any
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The JSON of an answer to tensors of bytes, and each output's own bytes."""
    block = packed(texts)
    sent = {"name": "text", "datatype": "BYTES", "shape": [len(texts), 1]}
    sent["parameters"] = {"binary_data_size": len(block)}
    head = json.dumps({"inputs": [sent], **more}).encode()
    answer = client.post(
        f"/v2/models/{model}/infer",
        content=head + block,
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert answer.status_code == 200, answer.text
    end = int(answer.headers["inference-header-content-length"])
    body, blocks = json.loads(answer.content[:end]), {}
    for output in body["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        blocks[output["name"]] = answer.content[end : end + size]
        end += size
    assert end == len(answer.content)
    return body, blocks


@pytest.mark.parametrize(("model", "query"), [("a", "?adapter=a"), ("tiny-bert", ""), ("base", "")])
def test_texts_become_the_vectors_that_embed_gives(
    served: httpx.Client, model: str, query: str
) -> None:
    native = served.post(f"/embed{query}", json={"inputs": TEXTS})
    answer = infer(served, model, TEXTS, id="7")
    [output] = answer.json()["outputs"]
    assert (output["name"], output["datatype"]) == ("embedding", "FP32")
    assert output["shape"] == list(np.shape(native.json()))
    assert np.reshape(output["data"], output["shape"]).tolist() == native.json()
    assert (answer.json()["model_name"], answer.json()["id"]) == (model, "7")
    assert answer.headers["x-embedding-space"] == native.headers["x-embedding-space"]
    body, blocks = in_bytes(served, model, TEXTS, parameters={"binary_data_output": True})
    got = np.frombuffer(blocks["embedding"], "<f4").reshape(body["outputs"][0]["shape"])
    assert got.tolist() == np.array(native.json(), "<f4").tolist()


def test_a_classifier_gives_its_scores_and_the_labels_of_their_columns(
    served: httpx.Client,
) -> None:
    native = served.post("/classify?adapter=c", json={"inputs": TEXTS}).json()
    by_label = [{entry["label"]: entry["score"] for entry in entries} for entries in native]
    scores, labels = infer(served, "c", TEXTS).json()["outputs"]
    assert (labels["name"], labels["datatype"]) == ("labels", "BYTES")
    rows = np.reshape(scores["data"], scores["shape"]).tolist()
    for row, expected in zip(rows, by_label, strict=True):
        assert dict(zip(labels["data"], row, strict=True)) == pytest.approx(expected)
    outputs = [
        {"name": "labels", "parameters": {"binary_data": True}},
        {"name": "scores", "parameters": {"binary_data": False}},
    ]
    body, blocks = in_bytes(served, "c", TEXTS, outputs=outputs)
    assert [o["name"] for o in body["outputs"]] == ["labels", "scores"]
    assert blocks["labels"] == packed(labels["data"])
    assert body["outputs"][1]["data"] == scores["data"]


def test_a_classifiers_embedding_is_given_where_it_is_asked_for(served: httpx.Client) -> None:
    native = served.post("/embed?adapter=c", json={"inputs": TEXTS}).json()
    answer = infer(served, "c", TEXTS, outputs=[{"name": "embedding"}]).json()
    [output] = answer["outputs"]
    assert np.reshape(output["data"], output["shape"]).tolist() == native
    both = infer(served, "c", TEXTS, outputs=[{"name": "embedding"}, {"name": "scores"}])
    assert both.status_code == 400


def test_pairs_go_through_a_head_together(
    served: httpx.Client, tiny_bert: Path, tmp_path: Path
) -> None:
    put(served, "ranker", make_adapter(tiny_bert, tmp_path / "r", 5, labels=1, scale=4))
    pairs = [["good", "a bad film"], ["film", "good"]]
    native = served.post("/predict?adapter=ranker", json={"inputs": pairs}).json()
    first, second = map(list, zip(*pairs, strict=True))
    body = {"inputs": [tensor(second, "pair"), tensor(first)]}
    scores = served.post("/v2/models/ranker/infer", json=body).json()["outputs"][0]
    assert scores["data"] == pytest.approx([entries[0]["score"] for entries in native])
    fewer = {"inputs": [tensor(["good"], "pair"), tensor(first)]}
    assert served.post("/v2/models/ranker/infer", json=fewer).status_code == 400


def test_parameters_are_those_of_the_native_bodies(served: httpx.Client) -> None:
    for native, parameters in (
        ({"normalize": False}, {"normalize": False}),
        ({"prompt": "query: ", "dimensions": 8}, {"prompt": "query: ", "dimensions": 8}),
        ({"pooling": "cls", "truncate": True}, {"pooling": "cls"}),
    ):
        expected = served.post("/embed?adapter=a", json={"inputs": TEXTS, **native}).json()
        [output] = infer(served, "a", TEXTS, parameters=parameters).json()["outputs"]
        assert np.reshape(output["data"], output["shape"]).tolist() == expected, parameters
    logits = infer(served, "c", TEXTS, parameters={"raw_scores": True}).json()["outputs"][0]
    sums = np.reshape(logits["data"], logits["shape"]).sum(1)
    assert np.abs(sums - 1).min() > 1e-3


def test_a_version_of_a_name_is_a_version_of_the_model(
    served: httpx.Client, folders: dict[str, Path]
) -> None:
    old = served.get("/adapters/a").json()["version"]
    before = infer(served, "a", TEXTS).json()
    put(served, "a", folders["b"])
    assert infer(served, "a", TEXTS).json()["outputs"] != before["outputs"]
    path = f"/v2/models/a/versions/{old[:12]}"
    again = served.post(f"{path}/infer", json={"inputs": [tensor(TEXTS)]}).json()
    assert again == before
    assert again["model_version"] == old
    metadata = served.get(path).json()
    assert old in metadata["versions"]
    assert served.get(f"{path}/ready").json() == {"name": "a", "ready": True}
    for odd in ("ffffffffffff", "1"):
        assert served.get(f"/v2/models/a/versions/{odd}").status_code == 404


def test_metadata_says_what_is_taken_and_given(served: httpx.Client) -> None:
    assert served.get("/v2").json()["version"] == served.get("/info").json()["version"]
    hidden = served.get("/info").json()["hidden_size"]
    for model, outputs in (
        ("a", [("embedding", "FP32", [-1, hidden])]),
        ("tiny-bert", [("embedding", "FP32", [-1, hidden])]),
        ("c", [("scores", "FP32", [-1, 3]), ("labels", "BYTES", [3])]),
    ):
        metadata = served.get(f"/v2/models/{model}").json()
        given = [(o["name"], o["datatype"], o["shape"]) for o in metadata["outputs"]]
        assert (metadata["name"], given) == (model, outputs)
        assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert served.get("/v2/health/live").json() == {"live": True}
    assert served.get("/v2/health/ready").json() == {"ready": True}
    index = served.post("/v2/repository/index").json()
    assert [entry["name"] for entry in index] == ["base", "a", "b", "c"]


def test_an_unknown_model_is_404_with_a_sentence_in_error(served: httpx.Client) -> None:
    for answer in (
        served.get("/v2/models/nobody"),
        served.get("/v2/models/nobody/ready"),
        infer(served, "nobody", TEXTS),
    ):
        assert answer.status_code == 404
        assert "nobody" in answer.json()["error"]


def test_below_a_prefix_no_other_model_answers(served: httpx.Client) -> None:
    answer = served.post("/a/a/v2/models/tiny-bert/infer", json={"inputs": [tensor(TEXTS)]})
    assert answer.headers["x-adapter"].startswith("a@")
    answer = served.post("/a/a/v2/models/b/infer", json={"inputs": [tensor(TEXTS)]})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": []},
        {"inputs": [tensor([])]},
        {"inputs": [tensor(TEXTS, shape=[2])]},
        {"inputs": [tensor(TEXTS, shape=[3, 2])]},
        {"inputs": [tensor(TEXTS, shape=[-3])]},
        {"inputs": [tensor(TEXTS, shape=[])]},
        {"inputs": [tensor(TEXTS, datatype="FP32")]},
        {"inputs": [tensor(TEXTS, "TEXT")]},
        {"inputs": [tensor(TEXTS, "pair")]},
        {"inputs": [tensor(TEXTS), tensor(TEXTS)]},
        {"inputs": [tensor(TEXTS, data=[1, 2, 3])]},
        {"inputs": [tensor(["good", ""])]},
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1]}]},
        {"inputs": [tensor(TEXTS)], "outputs": [{"name": "logits"}]},
        {"inputs": [tensor(TEXTS)], "parameters": {"sequence_id": 1}},
        {"inputs": [tensor(TEXTS)], "outputs": [{"name": "scores"}]},
    ],
)
def test_what_is_wrong_with_a_request_is_a_400_that_says_it(
    served: httpx.Client, body: dict[str, Any]
) -> None:
    answer = served.post("/v2/models/a/infer", json=body)
    assert answer.status_code == 400, answer.text
    assert len(answer.json()["error"]) > 10


def test_no_more_texts_than_a_request_may_have(served: httpx.Client) -> None:
    most = served.get("/info").json()["max_client_batch_size"]
    assert infer(served, "a", ["a"] * (most + 1)).status_code == 413
    huge = {"inputs": [tensor(["a"], shape=[2**70])]}
    assert served.post("/v2/models/a/infer", json=huge).status_code == 413


def test_another_media_type_is_415(served: httpx.Client) -> None:
    answer = served.post("/v2/models/a/infer", content=b"x", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415


HEAD = {"name": "text", "datatype": "BYTES", "shape": [2]}


@pytest.mark.parametrize(
    "length", ["", "-1", "1e3", "9999", "99999999999999999999", "0", "٣", "5 5", "0x10"]
)
def test_a_length_of_the_json_that_cannot_be_is_400(served: httpx.Client, length: str) -> None:
    answer = served.post(
        "/v2/models/a/infer",
        content=json.dumps({"inputs": [tensor(TEXTS)]}).encode(),
        headers=[(b"Inference-Header-Content-Length", length.encode())],
    )
    assert answer.status_code == 400, answer.text


def bounds() -> Serving:
    """What the parser asks of a server: how many inputs, and how long."""
    encoder = SimpleNamespace(max_length=80)
    runtime = SimpleNamespace(max_inputs=2048, engine=SimpleNamespace(encoder=encoder))
    return cast(Serving, SimpleNamespace(runtime=runtime))


def parsed(block: bytes, size: int, count: int, end: int | None = None) -> list[str]:
    sent = {**HEAD, "shape": [count], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [sent]}).encode()
    length = str(len(head) if end is None else end)
    return list(parse_inference(bytearray(head + block), length, bounds()).texts.items)  # type: ignore[arg-type]


@given(st.lists(st.text(), min_size=1, max_size=20))
def test_strings_come_out_as_they_were_packed(texts: list[str]) -> None:
    encodable = [text.encode("utf-8", "replace").decode() for text in texts]
    block = packed(encodable)
    assert parsed(block, len(block), len(encodable)) == encodable


@given(
    block=st.binary(max_size=64),
    size=st.integers(-2, 80),
    count=st.integers(-1, 20),
    end=st.none() | st.integers(0, 200),
)
def test_whatever_the_bytes_and_lengths_it_is_texts_or_a_refusal(
    block: bytes, size: int, count: int, end: int | None
) -> None:
    try:
        texts = parsed(block, size, count, end)
    except Refusal as refusal:
        assert refusal.status in (400, 422)
    else:
        assert packed(texts) == block
        assert len(texts) == count


@pytest.mark.parametrize(
    "block",
    [
        packed(["a", "b"])[:-1],
        packed(["a"]),
        packed(["a", "b", "c"]),
        struct.pack("<I", 2**32 - 1) + b"a" * 20,
        packed(["a"]) + b"\x01\x00",
        packed(["a", "b"]) + b"\x00",
    ],
)
def test_lengths_that_do_not_add_up_are_malformed(block: bytes) -> None:
    with pytest.raises(Refusal) as refusal:
        parsed(block, len(block), 2)
    assert refusal.value.status in (400, 422)
