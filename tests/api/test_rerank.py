"""Rerank in Cohere's, Jina's, vLLM's, LiteLLM's and Infinity's shapes, against PEFT's own scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Serve
from tests.live import LiveServer, live_server
from tests.oracles import make_adapter, peft_logits, put

QUERY = "where is my card"
TEXTS = ["the card is late", "a good film", "the rain in spain", "my money is gone"]
PATHS = ["/rerank", "/v1/rerank", "/v2/rerank", "/infinity/rerank"]
OWN = PATHS[:3]


@pytest.fixture(scope="module")
def ranker(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_bert, tmp_path_factory.mktemp("heads") / "ranker", 5, labels=1)


@pytest.fixture(scope="module")
def wanted(tiny_bert: Path, ranker: Path) -> list[float]:
    """PEFT's sigmoid for each text."""
    logits = peft_logits(tiny_bert, ranker, 1, [(QUERY, text) for text in TEXTS])
    return [float(x) for x in logits[:, 0].sigmoid()]


@pytest.fixture(scope="module")
def ranking(
    tiny_bert: Path,
    ranker: Path,
    folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveServer]:
    """One adapter that reranks, one that embeds, one with three labels."""
    folder = tmp_path_factory.mktemp("ranking")
    server = live_server(model=str(tiny_bert), store=folder / "store", adapters_dir=folder / "none")
    for name, source in {"ranker": ranker, "a": folders["a"], "c": folders["c"]}.items():
        put(server.client, name, source)
    yield server
    server.stop()


@pytest.fixture
def client(ranking: LiveServer) -> httpx.Client:
    return ranking.client


def asked(client: httpx.Client, path: str, **members: Any) -> dict[str, Any]:
    body = {"model": "ranker", "query": QUERY, "documents": TEXTS, **members}
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("path", PATHS)
def test_every_shape_has_peft_s_scores_best_first(
    client: httpx.Client, wanted: list[float], path: str
) -> None:
    answer = asked(client, path)
    order = sorted(range(len(TEXTS)), key=lambda i: -wanted[i])
    assert [r["index"] for r in answer["results"]] == order
    for result in answer["results"]:
        assert result["relevance_score"] == pytest.approx(wanted[result["index"]], abs=1e-5)
    assert answer["model"] == "ranker"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize("path", OWN)
def test_top_n_leaves_the_best_and_zero_or_too_many_leaves_all(
    client: httpx.Client, path: str
) -> None:
    best = [r["index"] for r in asked(client, path)["results"]]
    for top_n, count in ((1, 1), (3, 3), (0, 4), (None, 4), (99, 4)):
        results = asked(client, path, top_n=top_n)["results"]
        assert [r["index"] for r in results] == best[:count], top_n


@pytest.mark.parametrize("path", OWN)
def test_a_document_comes_back_as_text_or_as_it_was_sent_unless_refused(
    client: httpx.Client, path: str
) -> None:
    documents = [TEXTS[0], {"text": TEXTS[1], "title": "films"}]
    results = asked(client, path, documents=documents, rank_fields=["text"])["results"]
    by_place = {r["index"]: r["document"] for r in results}
    assert by_place == {0: {"text": TEXTS[0]}, 1: documents[1]}
    bare = asked(client, path, return_documents=False)["results"]
    assert all("document" not in r for r in bare)


def test_an_object_comes_back_whatever_numbers_it_holds(client: httpx.Client) -> None:
    document = {"text": TEXTS[0], "id": 39689933046427141497946112, "deep": [{"a": -(2**70)}]}
    for path in OWN:
        answer = client.post(path, json={"query": QUERY, "documents": [document]})
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"][0]["document"] == document


def test_infinity_s_document_is_a_string_where_it_is_asked_for(client: httpx.Client) -> None:
    results = asked(client, "/infinity/rerank", return_documents=True, top_n=2)["results"]
    assert [r["document"] for r in results] == [TEXTS[r["index"]] for r in results]
    assert all(r["document"] is None for r in asked(client, "/infinity/rerank")["results"])


def test_an_object_s_text_is_what_is_ranked(client: httpx.Client) -> None:
    plain = asked(client, "/v1/rerank")["results"]
    objects = asked(client, "/v1/rerank", documents=[{"text": text} for text in TEXTS])
    assert objects["results"] == plain


def test_cohere_s_and_litellm_s_meta_tell_version_units_and_tokens(client: httpx.Client) -> None:
    for path, version in (("/v1/rerank", "1"), ("/v2/rerank", "2")):
        answer = asked(client, path, documents=["a card"] * 101, return_documents=False)
        meta = answer["meta"]
        assert meta["api_version"] == {"version": version}
        assert meta["billed_units"] == {"search_units": 2}
        assert meta["tokens"]["input_tokens"] == answer["usage"]["total_tokens"]


@pytest.mark.parametrize("member", [{"raw_scores": True}, {"use_activation": False}])
def test_the_head_s_own_numbers_come_without_the_sigmoid(
    client: httpx.Client, tiny_bert: Path, ranker: Path, member: dict[str, bool]
) -> None:
    logits = peft_logits(tiny_bert, ranker, 1, [(QUERY, text) for text in TEXTS])
    for result in asked(client, "/v2/rerank", **member)["results"]:
        wanted = float(logits[result["index"], 0])
        assert result["relevance_score"] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    "members",
    [
        {"max_tokens_per_doc": 4096},
        {"max_tokens_per_doc": 0},
        {"max_chunks_per_doc": 10},
        {"priority": 0},
        {"truncation_side": "left"},
        {"truncate_prompt_tokens": -1},
        {"add_special_tokens": True, "padding": "do_not_pad", "cache_salt": "x"},
        {"request_id": "mine", "mm_processor_kwargs": None},
        {"user": "me", "top_n": None, "rank_fields": None},
    ],
)
def test_what_changes_nothing_here_changes_nothing(
    client: httpx.Client, members: dict[str, Any]
) -> None:
    assert (
        asked(client, "/v2/rerank", **members)["results"] == asked(client, "/v2/rerank")["results"]
    )


@pytest.mark.parametrize("path", OWN)
def test_truncate_prompt_tokens_cuts_each_pair_as_vllm_s_score_does(
    client: httpx.Client, path: str
) -> None:
    how = {"model": "ranker", "truncate_prompt_tokens": 7, "request_id": "mine"}
    ranked = client.post(path, json={"query": QUERY, "documents": TEXTS, **how}).json()
    scored = client.post("/score", json={"text_1": QUERY, "text_2": TEXTS, **how}).json()
    scores = [
        result["relevance_score"] for result in sorted(ranked["results"], key=lambda r: r["index"])
    ]
    assert scores == pytest.approx([one["score"] for one in scored["data"]], abs=1e-5)
    assert ranked["usage"]["total_tokens"] == scored["usage"]["total_tokens"] == 7 * len(TEXTS)
    assert ranked["id"] == "rerank-mine"


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"max_tokens_per_doc": 8}, "max_tokens_per_doc"),
        ({"rank_fields": ["title"]}, "rank_fields[0]"),
        ({"relevant_spans": {"mode": "all"}}, "relevant_spans"),
        ({"instruction": "be kind"}, "instruction"),
        ({"priority": 5}, "priority"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"top_n": -1}, "top_n"),
        ({"documents": []}, "documents"),
        ({"documents": ["a", ""]}, "documents[1]"),
        ({"documents": ["a", {"image": "x"}]}, "documents[1]"),
        ({"documents": ["a", 5]}, "documents[1]"),
        ({"query": ""}, "query"),
    ],
)
@pytest.mark.parametrize("path", OWN)
def test_what_cannot_be_honoured_is_refused_by_its_name(
    client: httpx.Client, path: str, members: dict[str, Any], field: str
) -> None:
    body = {"model": "ranker", "query": QUERY, "documents": TEXTS, **members}
    answer = client.post(path, json=body)
    refusal = answer.json()
    assert answer.status_code == 400, answer.text
    assert refusal["problems"][0]["field"] == field
    assert refusal["message"] == refusal["detail"] == refusal["error"]["message"]


@pytest.mark.parametrize("path", PATHS)
def test_where_no_adapter_is_named_the_only_one_that_reranks_answers(
    client: httpx.Client, path: str
) -> None:
    answer = client.post(path, json={"query": QUERY, "documents": TEXTS})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-adapter"].startswith("ranker@")


def test_tei_s_clients_find_it_too(client: httpx.Client) -> None:
    answer = client.post("/rerank", json={"query": QUERY, "texts": TEXTS})
    assert answer.headers["x-adapter"].startswith("ranker@")
    assert [r["index"] for r in answer.json()] == [
        r["index"] for r in asked(client, "/rerank")["results"]
    ]


def test_tei_s_texts_may_be_asked_for_the_best_only(client: httpx.Client) -> None:
    every = client.post("/rerank", json={"query": QUERY, "texts": TEXTS}).json()
    for top_n, count in ((1, 1), (0, 4), (None, 4)):
        body = {"query": QUERY, "texts": TEXTS, "top_n": top_n}
        assert client.post("/rerank", json=body).json() == every[:count]


def test_where_several_rerank_they_are_named_and_where_none_does_that_is_said(
    serve: Serve, tiny_bert: Path, ranker: Path
) -> None:
    client, body = serve(model=str(tiny_bert)).client, {"query": QUERY, "documents": TEXTS}
    none = client.post("/v2/rerank", json=body)
    assert none.status_code == 400
    assert "none reranks" in none.json()["message"]
    put(client, "one", ranker)
    assert client.post("/v2/rerank", json=body).status_code == 200
    put(client, "two", ranker)
    several = client.post("/v2/rerank", json=body)
    assert several.status_code == 400
    assert several.json()["adapters_with_head"] == ["one", "two"]
    client.delete("/adapters/one")
    assert client.post("/v2/rerank", json=body).headers["x-adapter"].startswith("two@")


@pytest.mark.parametrize("model", ["rerank-v3.5", "rerank-english-v3.0", "jina-reranker-v2"])
def test_a_model_of_somebody_else_is_not_found_and_those_that_rerank_are_named(
    client: httpx.Client, model: str
) -> None:
    body = {"model": model, "query": QUERY, "documents": TEXTS}
    answer = client.post("/v2/rerank", json=body)
    assert answer.status_code == 404
    assert "ranker" in answer.json()["nearest"]
    assert answer.json()["error"]["code"] == "model_not_found"
    chosen = client.post("/a/ranker/v2/rerank", json=body)
    assert chosen.headers["x-adapter"].startswith("ranker@")
    assert client.post("/infinity/rerank", json=body).status_code == 400


@pytest.mark.parametrize("model", ["a", "c", "base"])
def test_an_adapter_that_does_not_rerank_is_refused(client: httpx.Client, model: str) -> None:
    body = {"model": model, "query": QUERY, "documents": TEXTS}
    assert client.post("/v2/rerank", json=body).status_code == 400


def test_more_documents_than_inputs_are_allowed_are_refused_unread(
    serve: Serve, tiny_bert: Path, ranker: Path
) -> None:
    client = serve(model=str(tiny_bert), max_client_batch=3).client
    put(client, "ranker", ranker)
    for path in PATHS:
        answer = client.post(path, json={"query": QUERY, "documents": TEXTS})
        assert answer.json()["error_type"] == "too_many_inputs", path


def test_a_body_of_neither_family_is_answered_as_tei_s(client: httpx.Client) -> None:
    answer = client.post("/rerank", json={"query": QUERY})
    assert answer.json()["problems"][0]["field"] == "texts"
