"""llama-index: TEI's embeddings, OpenAI-like ones, TEI's rerank."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

import pytest
from conftest import QUERY, TEXTS, Server, assert_close
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference as TEIRerank


@pytest.mark.parametrize(
    ("more", "adapter"),
    [
        ({}, "base"),
        ({"endpoint": "/embed?adapter=sentiment"}, "sentiment"),
        ({"endpoint": "/a/sentiment/embed"}, "sentiment"),
        ({"endpoint": "/a/sentiment"}, "sentiment"),
    ],
)
def test_tei(server: Server, more: dict[str, Any], adapter: str) -> None:
    embedder = TextEmbeddingsInference(
        model_name="any", base_url=server.url, auth_token=server.key, **more
    )
    assert_close(embedder.get_text_embedding_batch(TEXTS), server.vectors(adapter=adapter))
    query = asyncio.run(embedder.aget_query_embedding(QUERY))
    assert_close(query, server.vectors([QUERY], adapter)[0])


@pytest.mark.parametrize(
    ("path", "model", "adapter"),
    [
        ("/v1", "sentiment", "sentiment"),
        ("/v1", "all-MiniLM-L6-v2", "base"),
        ("/a/sentiment/v1", "text-embedding-3-small", "sentiment"),
    ],
)
def test_openai_like(server: Server, path: str, model: str, adapter: str) -> None:
    embedder = OpenAILikeEmbedding(
        model_name=model, api_base=server.url + path, api_key=server.key, embed_batch_size=2_048
    )
    assert_close(embedder.get_text_embedding_batch(TEXTS), server.vectors(adapter=adapter))
    many = embedder.get_text_embedding_batch(["one"] * 2_048)
    assert len(many) == 2_048


@pytest.mark.skipif(
    version("llama-index-postprocessor-tei-rerank") < "0.5",
    reason="gave the best score to the first text, whatever its place: wrong of TEI's answers too",
)
@pytest.mark.parametrize("path", ["", "/a/rerank"])
@pytest.mark.parametrize("bearer", ["", "Bearer "])
def test_tei_rerank(server: Server, path: str, bearer: str) -> None:
    ranker = TEIRerank(base_url=server.url + path, auth_token=bearer + server.key, top_n=2)
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    ranked = ranker.postprocess_nodes(nodes, QueryBundle(QUERY))
    expected = server.native("/rerank?adapter=rerank", {"query": QUERY, "texts": TEXTS})[:2]
    assert [one.node.get_content() for one in ranked] == [TEXTS[one["index"]] for one in expected]
    assert_close([one.score for one in ranked], [one["score"] for one in expected])
