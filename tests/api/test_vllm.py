"""vLLM's calls, as its clients send them, against PEFT's numbers and transformers' tokens."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, TaskType, get_peft_model
from torch.testing import assert_close
from transformers import AutoModelForTokenClassification, AutoTokenizer

from tests.live import LiveServer
from tests.oracles import (
    FP32,
    SENTENCES,
    encode,
    make_adapter,
    peft_embeddings,
    peft_logits,
    plain_embeddings,
    put,
    randomise,
)

LONG = " ".join(SENTENCES * 20)
TEXTS = SENTENCES[:7]  # short enough for the tiny BERT
QUERY, DOCUMENTS = SENTENCES[0], SENTENCES[1:4]


@pytest.fixture
def ranker(tiny_bert: Path, tmp_path: Path, served: httpx.Client) -> Path:
    """A head of one label, served as `ranker`."""
    folder = make_adapter(tiny_bert, tmp_path / "ranker", 5, labels=1, scale=4)
    put(served, "ranker", folder)
    return folder


@pytest.fixture
def sdk(tiny_server: LiveServer, served: httpx.Client) -> Iterator[openai.OpenAI]:
    """As vLLM's documentation calls what OpenAI does not have."""
    with openai.OpenAI(base_url=tiny_server.url, api_key="none", max_retries=0) as client:
        yield client


def call(client: openai.OpenAI, path: str, **body: Any) -> Any:
    return client.post(path, body=body, cast_to=object)


def test_classify_gives_pefts_scores_in_the_labels_order(
    sdk: openai.OpenAI, tiny_bert: Path, folders: dict[str, Path]
) -> None:
    logits = peft_logits(tiny_bert, folders["c"], 3, TEXTS)
    answer = call(sdk, "/classify", model="c", input=TEXTS)
    assert_close(torch.tensor([d["probs"] for d in answer["data"]]), logits.softmax(-1), **FP32)
    assert [d["label"] for d in answer["data"]] == [f"LABEL_{i}" for i in logits.argmax(-1)]
    assert [(d["index"], d["num_classes"]) for d in answer["data"]] == [
        (i, 3) for i in range(len(TEXTS))
    ]
    assert (answer["object"], answer["model"]) == ("list", "c")
    assert answer["usage"]["prompt_tokens"] == sum(
        encode(tiny_bert, text, 256)["input_ids"].numel() for text in TEXTS
    )


@pytest.mark.parametrize("name", ["use_activation", "activation", "softmax"])
def test_classify_without_activation_gives_logits(
    sdk: openai.OpenAI, tiny_bert: Path, folders: dict[str, Path], name: str
) -> None:
    logits = peft_logits(tiny_bert, folders["c"], 3, TEXTS)
    answer = call(sdk, "/classify", model="c", input=TEXTS, **{name: False})
    assert_close(torch.tensor([d["probs"] for d in answer["data"]]), logits, **FP32)


def test_the_body_decides_whose_classify_it_is_and_errors_follow(served: httpx.Client) -> None:
    def asked(**body: Any) -> httpx.Response:
        return served.post("/classify?adapter=c", json=body)

    assert isinstance(asked(inputs="good").json(), list)
    assert asked(input="good").json()["data"][0]["num_classes"] == 3
    for body, status, openai_shape in (
        ({"input": ""}, 400, True),
        ({"input": "good", "inputs": "good"}, 400, True),
        ({"inputs": ""}, 422, False),
        ({}, 422, False),
    ):
        answer = asked(**body)
        assert answer.status_code == status, body
        assert isinstance(answer.json()["error"], dict) is openai_shape, body
    several = served.post("/classify?adapter=c&adapter=a", json={"input": "good"})
    assert several.status_code == 400


def test_an_unknown_model_is_openais_model_not_found(sdk: openai.OpenAI) -> None:
    for path, body in (
        ("/classify", {"input": "good"}),
        ("/score", {"text_1": "good", "text_2": "bad"}),
        ("/pooling", {"input": "good"}),
        ("/tokenize", {"prompt": "good"}),
        ("/detokenize", {"tokens": [2]}),
    ):
        with pytest.raises(openai.NotFoundError) as error:
            call(sdk, path, model="nobody", **body)
        assert error.value.code == "model_not_found", path


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("text_1", "text_2"),
        ("data_1", "data_2"),
        ("queries", "documents"),
        ("queries", "items"),
    ],
)
def test_score_is_the_sigmoid_of_a_head_of_one_label_in_every_spelling(
    sdk: openai.OpenAI, tiny_bert: Path, ranker: Path, path: str, first: str, second: str
) -> None:
    pairs = [(QUERY, document) for document in DOCUMENTS]
    logits = peft_logits(tiny_bert, ranker, 1, pairs)[:, 0]
    answer = call(sdk, path, model="ranker", **{first: QUERY, second: DOCUMENTS})
    assert [(d["index"], d["object"]) for d in answer["data"]] == [
        (i, "score") for i in range(len(pairs))
    ]
    assert_close(torch.tensor([d["score"] for d in answer["data"]]), logits.sigmoid(), **FP32)
    raw = call(sdk, path, model="ranker", use_activation=False, **{first: QUERY, second: DOCUMENTS})
    assert_close(torch.tensor([d["score"] for d in raw["data"]]), logits, **FP32)


def test_score_without_a_head_is_the_cosine_of_the_embeddings(
    sdk: openai.OpenAI, tiny_bert: Path, folders: dict[str, Path]
) -> None:
    texts = [QUERY, *DOCUMENTS]
    for model, vectors in (
        ("a", peft_embeddings(tiny_bert, folders["a"], texts)),
        ("tiny-bert", plain_embeddings(tiny_bert, texts)),
    ):
        answer = call(sdk, "/score", model=model, text_1=QUERY, text_2=DOCUMENTS)
        expected = F.cosine_similarity(vectors[:1], vectors[1:])
        assert_close(torch.tensor([d["score"] for d in answer["data"]]), expected, **FP32)
        each = call(sdk, "/score", model=model, text_1=texts[:2], text_2=texts[1:3])
        expected = F.cosine_similarity(vectors[:2], vectors[1:3])
        assert_close(torch.tensor([d["score"] for d in each["data"]]), expected, **FP32)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model": "a", "text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ({"model": "a", "text_1": "a", "text_2": []}, "text_2"),
        ({"model": "a", "text_1": "a", "text_2": ["b", ""]}, "text_2[1]"),
        ({"model": "a", "text_1": "a", "text_2": "b", "queries": "c"}, "queries"),
        ({"model": "a", "text_1": "a", "text_2": ["b", LONG]}, "pairs[1]"),
        ({"model": "c", "text_1": "a", "text_2": "b"}, "adapter"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_its_name(
    served: httpx.Client, body: dict[str, Any], field: str
) -> None:
    answer = served.post("/score", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field


def test_pooling_gives_what_the_adapter_is_for(
    sdk: openai.OpenAI, tiny_bert: Path, folders: dict[str, Path]
) -> None:
    vectors = peft_embeddings(tiny_bert, folders["a"], TEXTS)
    probabilities = peft_logits(tiny_bert, folders["c"], 3, TEXTS).softmax(-1)
    for body, expected in (
        ({"model": "a"}, vectors),
        ({"model": "a", "task": "embed", "dimensions": 8}, F.normalize(vectors[:, :8])),
        ({"model": "c"}, probabilities),
        ({"model": "c", "task": "classify"}, probabilities),
    ):
        answer = call(sdk, "/pooling", input=TEXTS, **body)
        assert {d["object"] for d in answer["data"]} == {"pooling"}
        assert_close(torch.tensor([d["data"] for d in answer["data"]]), expected, **FP32)
    body = {"model": "a", "input": "good"}
    encoded = call(sdk, "/pooling", encoding_format="base64", **body)["data"][0]["data"]
    plain = call(sdk, "/pooling", **body)["data"][0]["data"]
    assert np.frombuffer(base64.b64decode(encoded), "<f4").tolist() == pytest.approx(plain)


def test_pooling_of_embeddings_is_normalised_as_asked(sdk: openai.OpenAI) -> None:
    for name in ("normalize", "use_activation"):
        vector = call(sdk, "/pooling", model="a", input="good", **{name: False})["data"][0]["data"]
        assert abs(np.linalg.norm(vector) - 1) > 0.01, name


@torch.inference_mode()
def test_embeddings_take_how_vllm_s_bodies_want_the_vectors(
    sdk: openai.OpenAI, served: httpx.Client
) -> None:
    how = {"embed_dtype": "float32", "endianness": "native", "use_activation": False}
    got = call(sdk, "/v1/embeddings", model="a", input="good", **how)["data"][0]["embedding"]
    body = {"inputs": "good", "normalize": False}
    expected = served.post("/embed?adapter=a", json=body).json()
    assert_close(torch.tensor([got]), torch.tensor(expected), **FP32)
    for name, value in {"embed_dtype": "float16", "endianness": "big"}.items():
        with pytest.raises(openai.BadRequestError) as refused:
            call(sdk, "/v1/embeddings", model="a", input="good", **{name: value})
        assert refused.value.param == name


def test_pooling_gives_every_tokens_scores_of_an_adapter_that_labels_tokens(
    sdk: openai.OpenAI, served: httpx.Client, tiny_bert: Path, tmp_path: Path
) -> None:
    torch.manual_seed(9)
    model = AutoModelForTokenClassification.from_pretrained(tiny_bert, num_labels=4)
    config = LoraConfig(r=4, target_modules=["query", "value"], task_type=TaskType.TOKEN_CLS)
    tuned = get_peft_model(model, config)
    randomise(tuned, 4)
    tuned.eval().save_pretrained(tmp_path / "ner", save_embedding_layers=False)
    put(served, "ner", tmp_path / "ner", task="tokens")
    rows = call(sdk, "/pooling", model="ner", input=TEXTS)["data"]
    for row, text in zip(rows, TEXTS, strict=True):
        expected = tuned(**encode(tiny_bert, text, 256)).logits[0].softmax(-1)
        assert_close(torch.tensor(row["data"]), expected, **FP32)
    classified = served.post("/classify", json={"model": "ner", "input": "good"})
    assert classified.status_code == 400
    assert "labels the words" in classified.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "a", "task": "token_embed"}, "task"),
        ({"model": "c", "task": "token_classify"}, "task"),
        ({"model": "c", "dimensions": 2}, "dimensions"),
        ({"model": "a", "task": "plugin"}, "task"),
        ({"model": "a", "encoding_format": "bytes"}, "encoding_format"),
        ({"model": "a", "embed_dtype": "float16"}, "embed_dtype"),
        ({"model": "a", "add_special_tokens": False}, "add_special_tokens"),
        ({"model": "a", "priority": 3}, "priority"),
        ({"model": "a", "padding": "max_length"}, "padding"),
        ({"model": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"model": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"model": "a", "mm_processor_kwargs": {}}, "mm_processor_kwargs"),
    ],
)
def test_what_is_not_honoured_is_refused_by_its_name(
    served: httpx.Client, body: dict[str, Any], param: str
) -> None:
    answer = served.post("/pooling", json={"input": "good", **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    names = {"add_special_tokens", "priority", "padding", "truncate_prompt_tokens"}
    if param in names | {"mm_processor_kwargs"}:
        answer = served.post("/v1/embeddings", json={"input": "good", **body})
        assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("count", [1, 3, 7, 250])
@pytest.mark.parametrize("side", ["left", "right"])
def test_truncate_prompt_tokens_cuts_to_so_many(
    sdk: openai.OpenAI, served: httpx.Client, tiny_bert: Path, count: int, side: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, truncation_side=side)
    size = min(max(2, count), 80)  # [CLS] and [SEP] stay; the tiny BERT reads 80
    cut = [tokenizer(t, truncation=True, max_length=size)["input_ids"] for t in [LONG, "good"]]
    expected = served.post("/embed?adapter=a", json={"inputs": cut}).json()
    how = {"truncate_prompt_tokens": count, "truncation_side": side}
    for path in ("/pooling", "/v1/embeddings"):
        answer = call(sdk, path, model="a", input=[LONG, "good"], **how)
        got = [d.get("data") or d["embedding"] for d in answer["data"]]
        assert_close(torch.tensor(got), torch.tensor(expected), **FP32)
        assert answer["usage"]["prompt_tokens"] == sum(map(len, cut))


def test_what_is_too_long_is_refused_on_vllms_routes_and_cut_where_asked(
    sdk: openai.OpenAI, served: httpx.Client
) -> None:
    for path in ("/classify", "/pooling"):
        with pytest.raises(openai.BadRequestError) as error:
            call(sdk, path, model="c", input=["good", LONG])
        assert error.value.param == "input[1]"
    cut = call(sdk, "/classify", model="c", input=[LONG], truncate_prompt_tokens=-1)
    native = served.post("/classify?adapter=c", json={"inputs": LONG}).json()
    assert max(cut["data"][0]["probs"]) == pytest.approx(native[0]["score"], abs=1e-5)


def test_tokenize_and_detokenize_are_transformers(sdk: openai.OpenAI, tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    for text in (*TEXTS, LONG):
        for special in (True, False):
            ids = tokenizer(text, add_special_tokens=special)["input_ids"]
            got = call(
                sdk,
                "/tokenize",
                model="a",
                prompt=text,
                add_special_tokens=special,
                return_token_strs=True,
            )
            assert (got["tokens"], got["count"]) == (ids, len(ids))
            assert got["token_strs"] == tokenizer.convert_ids_to_tokens(ids)
            assert call(sdk, "/detokenize", tokens=ids) == {"prompt": tokenizer.decode(ids)}
    info = sdk.get("/info", cast_to=object)
    plain = call(sdk, "/tokenize", prompt="good")
    assert plain["max_model_len"] == info["max_input_length"]  # type: ignore[index]
    assert plain["token_strs"] is None


def test_a_prompt_that_is_endless_and_ids_that_are_none_are_refused(served: httpx.Client) -> None:
    for path, body, param in (
        ("/tokenize", {"prompt": "a " * 40_000}, "prompt"),
        ("/tokenize", {"prompt": "a" * 3_000_000}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "messages"),
        ("/detokenize", {"tokens": [10**9]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [3] * 70_000}, "tokens"),
    ):
        answer = served.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), path


def test_an_answers_id_is_the_clients_or_the_requests(served: httpx.Client) -> None:
    body = {"model": "a", "input": "good"}
    own = served.post("/pooling", json={**body, "request_id": "mine"}).json()
    assert own["id"] == "pool-mine"
    sent = served.post("/pooling", json=body, headers={"X-Request-Id": "sent"}).json()
    assert sent["id"] == "pool-sent"


def test_below_a_prefix_every_call_runs_through_its_adapter(served: httpx.Client) -> None:
    for path, body in (
        ("/classify", {"input": "good"}),
        ("/pooling", {"input": "good"}),
        ("/tokenize", {"prompt": "good"}),
        ("/detokenize", {"tokens": [2]}),
    ):
        answer = served.post(f"/a/c{path}", json=body)
        assert answer.status_code == 200, answer.text
        assert served.post(f"/a/c{path}", json={**body, "model": "a"}).status_code == 400
        if path in ("/classify", "/pooling"):
            assert answer.headers["x-adapter"].startswith("c@")


def test_the_version_is_the_servers(served: httpx.Client) -> None:
    assert served.get("/version").json() == {"version": served.get("/info").json()["version"]}
