"""infinity-client, generated from Infinity's own document."""

from __future__ import annotations

import pytest
from conftest import QUERY, TEXTS, Server, assert_close
from infinity_client import AuthenticatedClient
from infinity_client.api.default import classify, embeddings, health, models, rerank
from infinity_client.models import ClassifyInput, OpenAIEmbeddingInputText, RerankInput


@pytest.fixture
def client(server: Server) -> AuthenticatedClient:
    return AuthenticatedClient(
        base_url=f"{server.url}/infinity", token=server.key, raise_on_unexpected_status=True
    )


@pytest.mark.parametrize(
    ("model", "adapter"), [("sentiment", "sentiment"), ("all-MiniLM-L6-v2", "base")]
)
def test_embeddings(client: AuthenticatedClient, server: Server, model: str, adapter: str) -> None:
    body = OpenAIEmbeddingInputText.from_dict(
        {"input": TEXTS, "model": model, "dimensions": 0, "modality": "text"}
    )
    made = embeddings.sync(client=client, body=body)
    assert_close([one.embedding for one in made.data], server.vectors(adapter=adapter))


def test_below_the_prefix_its_default_model_is_the_adapter(server: Server) -> None:
    client = AuthenticatedClient(base_url=f"{server.url}/a/sentiment/infinity", token=server.key)
    body = OpenAIEmbeddingInputText.from_dict({"input": TEXTS})
    made = embeddings.sync(client=client, body=body)
    assert_close([one.embedding for one in made.data], server.vectors(adapter="sentiment"))


@pytest.mark.parametrize("raw", [False, True])
def test_classify(client: AuthenticatedClient, server: Server, raw: bool) -> None:
    body = ClassifyInput(input_=TEXTS, model="sentiment", raw_scores=raw)
    made = classify.sync(client=client, body=body)
    expected = server.native("/classify?adapter=sentiment", {"inputs": TEXTS, "raw_scores": raw})
    got = [{one.label: one.score for one in labels} for labels in made.data]
    for mine, theirs in zip(got, expected, strict=True):
        for one in theirs:
            assert_close(mine[one["label"]], one["score"])


@pytest.mark.parametrize("with_documents", [False, True])
def test_rerank(client: AuthenticatedClient, server: Server, with_documents: bool) -> None:
    body = RerankInput(
        query=QUERY, documents=TEXTS, model="rerank", top_n=2, return_documents=with_documents
    )
    made = rerank.sync(client=client, body=body)
    expected = server.native("/rerank?adapter=rerank", {"query": QUERY, "texts": TEXTS})[:2]
    assert [one.index for one in made.results] == [one["index"] for one in expected]
    assert_close([one.relevance_score for one in made.results], [one["score"] for one in expected])
    if with_documents:
        assert [one.document for one in made.results] == [TEXTS[one["index"]] for one in expected]


def test_models_and_health(client: AuthenticatedClient) -> None:
    assert "sentiment" in {model.id for model in models.sync(client=client).data}
    assert health.sync(client=client)["unix"] > 0
