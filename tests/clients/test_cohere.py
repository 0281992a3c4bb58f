"""cohere: embeddings and rerank of both its interfaces."""

from __future__ import annotations

from typing import Any

import cohere
import pytest
from conftest import QUERY, TEXTS, Server, assert_close


def client_of(server: Server, path: str = "", key: str | None = None) -> Any:
    return cohere.ClientV2(api_key=key or server.key, base_url=server.url + path)


@pytest.mark.parametrize(("path", "model"), [("", "rerank"), ("/a/rerank", "rerank-v3.5")])
def test_rerank(server: Server, path: str, model: str) -> None:
    ranked = client_of(server, path).rerank(model=model, query=QUERY, documents=TEXTS, top_n=2)
    expected = server.native("/rerank?adapter=rerank", {"query": QUERY, "texts": TEXTS})[:2]
    assert [one.index for one in ranked.results] == [one["index"] for one in expected]
    assert_close(
        [one.relevance_score for one in ranked.results], [one["score"] for one in expected]
    )


def test_rerank_of_the_first_interface(server: Server) -> None:
    client = cohere.Client(api_key=server.key, base_url=server.url)
    ranked = client.rerank(model="rerank", query=QUERY, documents=TEXTS, return_documents=True)
    expected = server.native("/rerank?adapter=rerank", {"query": QUERY, "texts": TEXTS})
    assert [one.document.text for one in ranked.results] == [TEXTS[e["index"]] for e in expected]


@pytest.mark.parametrize(
    ("path", "model", "adapter"),
    [
        ("", "sentiment", "sentiment"),
        ("", "all-MiniLM-L6-v2", "base"),
        ("/a/sentiment", "embed-v4.0", "sentiment"),
    ],
)
def test_embed(server: Server, path: str, model: str, adapter: str) -> None:
    made = client_of(server, path).embed(
        model=model, texts=TEXTS, input_type="search_document", embedding_types=["float"]
    )
    assert_close(made.embeddings.float_, server.vectors(adapter=adapter))


def test_embed_of_the_first_interface(server: Server) -> None:
    client = cohere.Client(api_key=server.key, base_url=server.url)
    made = client.embed(model="sentiment", texts=TEXTS, input_type="classification")
    assert_close(made.embeddings, server.vectors(adapter="sentiment"))


def test_errors(server: Server) -> None:
    with pytest.raises(cohere.NotFoundError):
        client_of(server).rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS)
    with pytest.raises(cohere.UnauthorizedError):
        client_of(server, key="wrong").rerank(model="rerank", query=QUERY, documents=TEXTS)
    with pytest.raises(cohere.BadRequestError):
        client_of(server).rerank(model="rerank", query=QUERY, documents=[])
