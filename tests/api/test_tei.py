"""text-embeddings-inference's clients: its calls, members, statuses and error types, its schemas and
headers, and huggingface_hub's own client.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub import InferenceClient, close_session
from huggingface_hub.errors import HfHubHTTPError
from jsonschema import Draft202012Validator
from peft import PeftModel
from tokenizers import Tokenizer
from torch.testing import assert_close
from transformers import AutoModel

from app.api.draining import Drain
from app.api.routes.tei_root import AT_ONCE
from tests.conftest import Serve
from tests.live import LiveServer
from tests.oracles import FP32, SENTENCES, encode, make_adapter, peft_embeddings, peft_logits, put

SCHEMAS = json.loads((Path(__file__).parent / "tei_schemas.json").read_text())
COMPUTE = ["compute", "total", "tokenization", "queue", "inference"]
PAIR = {"source_sentence": SENTENCES[0], "sentences": SENTENCES[1:4]}


def check(name: str, value: Any) -> None:
    """Against TEI's own schema of that name. Raises ValidationError."""
    Draft202012Validator({"$ref": f"#/$defs/{name}", **SCHEMAS}).validate(value)


@pytest.fixture(scope="module")
def ranker(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_bert, tmp_path_factory.mktemp("tei") / "r", 4, labels=1, scale=4)


@pytest.fixture
def tei(served: httpx.Client, ranker: Path) -> Iterator[httpx.Client]:
    """a and b embed, c has three labels, r one."""
    put(served, "r", ranker)
    yield served


CALLS: list[tuple[str, str, dict[str, Any], str]] = [
    ("/embed", "a", {"inputs": SENTENCES}, "EmbedResponse"),
    ("/embed_all", "a", {"inputs": SENTENCES[:3]}, "EmbedAllResponse"),
    ("/predict", "c", {"inputs": "good"}, "PredictResponse"),
    ("/predict", "c", {"inputs": [["good"], ["a", "b"]], "raw_scores": True}, "PredictResponse"),
    ("/rerank", "r", {"query": "a", "texts": SENTENCES, "return_text": True}, "RerankResponse"),
    ("/similarity", "a", {"inputs": PAIR}, "SimilarityResponse"),
]


@pytest.mark.parametrize(("path", "adapter", "body", "schema"), CALLS)
def test_each_answer_has_teis_schema_and_headers(
    tei: httpx.Client, path: str, adapter: str, body: dict[str, Any], schema: str
) -> None:
    nulls = {} if path == "/similarity" else {"truncate": None, "truncation_direction": "Left"}
    answer = tei.post(f"/a/{adapter}{path}", json=body | nulls)
    assert answer.status_code == 200, answer.text
    check(schema, answer.json())
    assert answer.headers["x-compute-type"] == ("gpu" if torch.cuda.is_available() else "cpu")
    took = [int(answer.headers[f"x-{name}-time"]) for name in COMPUTE]
    assert 0 <= max(took) == took[1]
    assert int(answer.headers["x-compute-tokens"]) > 0
    assert answer.headers["x-adapter"].startswith(f"{adapter}@")


def test_characters_and_tokens_are_counted_as_they_are(tei: httpx.Client) -> None:
    headers = tei.post("/embed", json={"inputs": ["good film", "é"]}).headers
    assert (headers["x-compute-characters"], headers["x-compute-tokens"]) == ("10", "7")
    headers = tei.post("/rerank?adapter=r", json={"query": "ab", "texts": ["c", "def"]}).headers
    assert headers["x-compute-characters"] == "8"


def test_token_states_are_pefts_last_hidden_states(
    tei: httpx.Client, tiny_bert: Path, folders: dict[str, Path]
) -> None:
    got = tei.post("/a/a/embed_all", json={"inputs": SENTENCES[:4]}).json()
    tuned = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), folders["a"]).eval()
    for text, states in zip(SENTENCES, got, strict=False):
        with torch.inference_mode():
            wanted = tuned(**encode(tiny_bert, text, 80)).last_hidden_state[0]
        assert_close(torch.tensor(states), wanted, **FP32)


def test_token_states_over_the_bound_are_refused_before_the_model_runs(
    tei: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.inference.states.MOST_NUMBERS", 32 * 10)
    assert tei.post("/embed_all", json={"inputs": ["a b c", "d e f"]}).status_code == 200
    ran = "bert_lora_tokens_total"
    before = [line for line in tei.get("/metrics").text.split("\n") if line.startswith(ran)]
    refused = tei.post("/embed_all", json={"inputs": ["a b c", "d e f g"]})
    assert (refused.status_code, refused.json()["error_type"]) == (413, "Validation")
    assert "11 tokens, over the 10" in refused.json()["error"]
    after = [line for line in tei.get("/metrics").text.split("\n") if line.startswith(ran)]
    assert before == after


def test_similarity_is_the_cosine_of_pefts_vectors(
    tei: httpx.Client, tiny_bert: Path, folders: dict[str, Path]
) -> None:
    vectors = peft_embeddings(tiny_bert, folders["a"], SENTENCES[:4], 80)
    body = {"inputs": PAIR, "parameters": {"truncate": True, "truncation_direction": "Right"}}
    got = tei.post("/a/a/similarity", json=body).json()
    assert_close(torch.tensor(got), vectors[1:] @ vectors[0], **FP32)


@pytest.mark.parametrize("specials", [True, False])
def test_tokens_are_the_tokenizers_own(tei: httpx.Client, tiny_bert: Path, specials: bool) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_bert / "tokenizer.json"))
    texts = ["Good film, my Love", "é [SEP] x", "the card " * 200]
    got = tei.post("/tokenize", json={"inputs": texts, "add_special_tokens": specials}).json()
    check("TokenizeResponse", got)
    for text, tokens in zip(texts, got, strict=True):
        wanted = tokenizer.encode(text, add_special_tokens=specials)
        assert [token["id"] for token in tokens] == wanted.ids
        assert [token["special"] for token in tokens] == [
            m == 1 for m in wanted.special_tokens_mask
        ]
        for token, (start, stop), name in zip(tokens, wanted.offsets, wanted.tokens, strict=True):
            place = (None, None, name) if token["special"] else (start, stop, text[start:stop])
            assert (token["start"], token["stop"], token["text"]) == place


def test_a_single_text_is_a_list_of_one_and_decoding_gives_it_back(tei: httpx.Client) -> None:
    (tokens,) = tei.post("/tokenize", json={"inputs": "good film"}).json()
    ids = [token["id"] for token in tokens]
    for sent, skip, wanted in (
        (ids, True, ["good film"]),
        ([ids, ids[1:2]], True, ["good film", "good"]),
        ([ids], False, ["[CLS] good film [SEP]"]),
    ):
        got = tei.post("/decode", json={"ids": sent, "skip_special_tokens": skip}).json()
        check("DecodeResponse", got)
        assert got == wanted


def test_token_ids_run_as_they_are(tei: httpx.Client) -> None:
    text = tei.post("/embed", json={"inputs": "good film"}).json()
    assert tei.post("/embed", json={"inputs": [2, 77, 76, 3]}).json() == text
    assert tei.post("/embed", json={"inputs": [77, 76]}).json() != text


LONG = "good film " * 100
ERRORS: list[tuple[str, dict[str, Any], int, str, str]] = [
    ("/embed", {"inputs": []}, 400, "Empty", "validation"),
    ("/embed", {"inputs": ["a", ""]}, 400, "Empty", "validation"),
    ("/embed", {"inputs": LONG, "truncate": False}, 413, "Validation", "validation"),
    ("/embed", {"inputs": [99_999]}, 422, "Tokenizer", "validation"),
    ("/embed", {"inputs": "a", "normalise": True}, 422, "Validation", "validation"),
    ("/embed", {"inputs": ["a"] * 2_049}, 413, "Validation", "too_many_inputs"),
    ("/embed_all", {"inputs": []}, 400, "Empty", "validation"),
    ("/embed_sparse", {"inputs": "a"}, 424, "Backend", "no_head"),
    ("/predict", {"inputs": "a"}, 424, "Backend", "no_head"),
    ("/predict?adapter=c", {"inputs": []}, 400, "Empty", "validation"),
    ("/rerank?adapter=a", {"query": "a", "texts": ["b"]}, 424, "Backend", "no_head"),
    ("/rerank?adapter=c", {"query": "a", "texts": ["b"]}, 424, "Backend", "validation"),
    ("/rerank?adapter=r", {"query": "a", "texts": []}, 400, "Empty", "validation"),
    ("/rerank?adapter=r", {"query": "", "texts": ["a"]}, 400, "Empty", "validation"),
    ("/similarity", {"inputs": PAIR | {"sentences": []}}, 400, "Empty", "validation"),
    ("/similarity", {"inputs": "a"}, 422, "Validation", "validation"),
    ("/tokenize", {"inputs": []}, 400, "Empty", "validation"),
    ("/tokenize", {"inputs": [[1, 2]]}, 422, "Validation", "validation"),
    ("/tokenize", {"inputs": "a" * 131_073}, 413, "Validation", "too_many_inputs"),
    ("/decode", {"ids": []}, 400, "Empty", "validation"),
    ("/decode", {"ids": [10**30]}, 422, "Tokenizer", "validation"),
    ("/decode", {"ids": [[2, -1]]}, 422, "Tokenizer", "validation"),
    ("/decode", {"ids": [[2] * 131_073]}, 413, "Validation", "too_many_inputs"),
    ("/", {"inputs": []}, 400, "Empty", "validation"),
    ("/", {}, 422, "Validation", "validation"),
    ("/invocations", {"instances": []}, 400, "Empty", "validation"),
    ("/invocations", {"instances": [{"inputs": "a"}, {"inputs": []}]}, 400, "Empty", "validation"),
    ("/invocations", {"instances": [1]}, 422, "Validation", "validation"),
]


@pytest.mark.parametrize(("path", "body", "status", "kind", "code"), ERRORS)
def test_errors_have_teis_status_and_type_and_our_code(
    tei: httpx.Client, path: str, body: dict[str, Any], status: int, kind: str, code: str
) -> None:
    answer = tei.post(path, json=body)
    told = answer.json()
    assert (answer.status_code, told["error_type"], told["code"]) == (status, kind, code)
    check("ErrorResponse", told)
    assert told["request_id"] == answer.headers["x-request-id"]


def test_what_tei_has_no_error_for_keeps_our_type(tei: httpx.Client) -> None:
    told = tei.post("/embed?adapter=sentimant", json={"inputs": "a"})
    assert (told.status_code, told.json()["error_type"]) == (404, "adapter_not_found")
    native = tei.post("/classify", json={"inputs": []})
    assert (native.status_code, native.json()["error_type"]) == (422, "validation")


def test_a_full_queue_is_overloaded_in_teis_words(serve: Serve, tiny_bert: Path) -> None:
    server = serve(model=str(tiny_bert), max_queue_tokens=1)
    admission = server.app.state.serving.runtime.engine.admission
    admission._tokens = 10_000  # as if they waited
    told = server.client.post("/embed", json={"inputs": "a b c"})
    admission._tokens = 0
    assert (told.status_code, told.json()["error_type"]) == (429, "Overloaded")
    assert int(told.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", ["/health", "/ping", "/a/a/ping"])
def test_health_is_unhealthy_in_teis_words(
    tei: httpx.Client, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    assert tei.get(path).status_code == tei.head(path).status_code == 200
    monkeypatch.setattr(Drain, "leaving", property(lambda _: True))
    told = tei.get(path)
    assert (told.status_code, told.json()["error_type"]) == (503, "Unhealthy")
    check("ErrorResponse", told.json())


def test_info_says_what_tei_says_of_the_base_and_of_each_adapter(tei: httpx.Client) -> None:
    labels = ["LABEL_0", "LABEL_1", "LABEL_2"]
    three = {
        "id2label": dict(zip("012", labels, strict=True)),
        "label2id": {name: i for i, name in enumerate(labels)},
    }
    one = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    for path, name, kind in (
        ("/info", "tiny-bert", {"embedding": {"pooling": "mean"}}),
        ("/a/a/info", "a", {"embedding": {"pooling": "mean"}}),
        ("/info?adapter=c", "c", {"classifier": three}),
        ("/a/r/info", "r", {"reranker": one}),
    ):
        info = tei.get(path).json()
        check("Info", info)
        assert (info["served_model_name"], info["model_type"]) == (name, kind)
        version = tei.get(f"/adapters/{name}").json().get("version", info["base"]["digest"])
        assert (info["model_id"], info["model_sha"]) == ("tiny-bert", version)
        assert info["architecture"] == "bert"
    assert tei.get("/a/nobody/info").status_code == 404
    assert tei.get("/info?verfy=true").status_code == 422


def test_one_address_answers_as_the_body_says(tei: httpx.Client) -> None:
    rank = {"query": "a", "texts": SENTENCES}
    embedding = {"input": SENTENCES, "model": "a"}
    for adapter, body, call in (
        ("a", {"inputs": SENTENCES}, "embed"),
        ("c", {"inputs": "good", "normalize": False}, "embed"),
        ("c", {"inputs": "good", "parameters": {}}, "predict"),
        ("r", rank, "rerank"),
        ("c", {"inputs": PAIR}, "similarity"),
        ("a", embedding, "v1/embeddings"),
    ):
        wanted = tei.post(f"/a/{adapter}/{call}", json=body)
        assert wanted.status_code == 200
        for path in (f"/a/{adapter}", f"/a/{adapter}/", f"/?adapter={adapter}"):
            for url in (path, path.replace("/?", "/invocations?")):
                got = tei.post(url, json=body)
                assert got.content == wanted.content, url
                assert got.headers["x-adapter"] == wanted.headers["x-adapter"]


def test_bare_inputs_are_vectors_at_the_root_and_what_the_adapter_is_for_in_a_runtime(
    tei: httpx.Client,
) -> None:
    for adapter, inputs, runtime in (
        ("a", "good", "embed"),
        ("c", [["good"], ["a", "b"]], "predict"),
        ("c", "good", "predict"),
        ("r", [["a", "b"]], "predict"),
    ):
        body = {"inputs": inputs}
        wanted = tei.post(f"/a/{adapter}/{runtime}", json=body)
        assert tei.post(f"/a/{adapter}/invocations", json=body).content == wanted.content
    vectors = tei.post("/embed?adapter=c", json={"inputs": "good"})
    assert tei.post("/a/c", json={"inputs": "good"}).content == vectors.content


def test_sagemakers_header_names_the_adapter_and_openais_errors_are_openais(
    tei: httpx.Client,
) -> None:
    header = {"X-Amzn-SageMaker-Adapter-Identifier": "a"}
    got = tei.post("/invocations", json={"inputs": "good"}, headers=header)
    assert got.json() == tei.post("/embed?adapter=a", json={"inputs": "good"}).json()
    told = tei.post("/invocations", json={"model": "nobody", "input": "a"})
    assert (told.status_code, told.json()["error"]["code"]) == (404, "model_not_found")


def test_vertexs_instances_are_each_its_own_call(tei: httpx.Client) -> None:
    bodies = [{"inputs": "good"}, {"inputs": ["a", "b"], "normalize": False}, {"inputs": PAIR}]
    got = tei.post("/a/a/invocations", json={"instances": bodies}).json()["predictions"]
    assert got == [tei.post("/a/a", json=body).json() for body in bodies]
    octets = {"Accept": "application/octet-stream"}
    assert tei.post("/", json={"instances": bodies}, headers=octets).status_code == 422
    many = tei.post("/", json={"instances": [{"inputs": "a"}] * 2_049})
    assert (many.status_code, many.json()["code"]) == (413, "too_many_inputs")


def test_of_a_bodys_instances_a_few_are_before_the_model_at_once(tei: httpx.Client) -> None:
    body = {"instances": [{"inputs": "good"}] * 2_048}
    most = 0.0
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(tei.post, "/", json=body)
        while not answer.done():
            lines = tei.get("/metrics").text.split("\n")
            starts = ("bert_lora_running_requests ", "bert_lora_waiting_requests ")
            # Each by itself: one that begins to run between the two looks would count twice.
            most = max(most, *(float(x.split()[1]) for x in lines if x.startswith(starts)))
    assert len(answer.result().json()["predictions"]) == 2_048
    assert 0 < most <= AT_ONCE


@pytest.fixture
def hub_session() -> Iterator[None]:
    """The clients share one session, which nobody closes for them."""
    yield
    close_session()


@pytest.mark.usefixtures("hub_session")
@pytest.mark.parametrize("end", ["", "/"])
def test_huggingface_hubs_client_by_url_alone(
    tei: httpx.Client,
    tiny_server: LiveServer,
    tiny_bert: Path,
    folders: dict[str, Path],
    end: str,
) -> None:
    client = InferenceClient(f"{tiny_server.url}/a/a{end}")
    wanted = peft_embeddings(tiny_bert, folders["a"], SENTENCES, 80)
    for more in ({}, {"truncate": True, "truncation_direction": "Right", "normalize": True}):
        got = client.feature_extraction(SENTENCES, **more)  # type: ignore[arg-type]
        np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5)
    cosines = client.sentence_similarity(SENTENCES[0], SENTENCES[1:4])
    assert_close(torch.tensor(cosines), wanted[1:4] @ wanted[0], **FP32)
    labels = InferenceClient(f"{tiny_server.url}/a/c{end}")
    vector = tei.post("/embed?adapter=c", json={"inputs": "good"}).json()
    np.testing.assert_allclose(labels.feature_extraction("good"), vector, atol=1e-5)
    probabilities = peft_logits(tiny_bert, folders["c"], 3, ["good"], 80)[0].softmax(-1)
    answer = labels.text_classification("good")
    assert [e.score for e in answer] == pytest.approx(
        sorted(probabilities.tolist())[::-1], abs=1e-5
    )
    best = labels.text_classification("good", top_k=1, function_to_apply="sigmoid")
    logits = peft_logits(tiny_bert, folders["c"], 3, ["good"], 80)[0]
    assert [e.score for e in best] == pytest.approx([float(logits.max().sigmoid())], abs=1e-5)


@pytest.mark.usefixtures("hub_session")
def test_huggingface_hubs_client_reads_the_error(
    tei: httpx.Client, tiny_server: LiveServer
) -> None:
    base = InferenceClient(tiny_server.url)
    assert base.feature_extraction("good").shape == (1, 32)
    with pytest.raises(HfHubHTTPError, match="has no classification head"):
        InferenceClient(f"{tiny_server.url}/predict").text_classification("good")
