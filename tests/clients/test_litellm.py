"""litellm: embeddings and five spellings of rerank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import litellm
import pytest
from conftest import QUERY, TEXTS, Server, assert_close

litellm.suppress_debug_info = True
litellm.telemetry = False


def rows(made: Any) -> list[Any]:
    return [one["embedding"] for one in made["data"]]


@pytest.mark.parametrize(
    ("model", "path", "adapter"),
    [
        ("openai/sentiment", "/v1", "sentiment"),
        ("openai/all-MiniLM-L6-v2", "/v1", "base"),
        ("openai/sentence-transformers/all-MiniLM-L6-v2", "/v1", "base"),
        ("openai/text-embedding-3-small", "/a/sentiment/v1", "sentiment"),
        ("hosted_vllm/sentiment", "/v1", "sentiment"),
        ("infinity/sentiment", "/infinity", "sentiment"),
        ("huggingface/sentiment", "/a/sentiment", "sentiment"),
        ("huggingface/sentiment", "/embed?adapter=sentiment", "sentiment"),
        ("jina_ai/sentiment", "/v1", "sentiment"),
    ],
)
def test_embeddings(server: Server, model: str, path: str, adapter: str) -> None:
    # Else it asks the hub what the model is for.
    more = {"input_type": "feature-extraction"} if model.startswith("huggingface/") else {}
    made = litellm.embedding(
        model=model, input=TEXTS, api_base=server.url + path, api_key=server.key, **more
    )
    assert_close(rows(made), server.vectors(adapter=adapter))


def test_a_429_is_retried(server: Server, spent_key: Callable[[], str]) -> None:
    made = litellm.embedding(
        model="openai/sentiment",
        input=["one"],
        api_base=f"{server.url}/v1",
        api_key=spent_key(),
        max_retries=4,
    )
    assert_close(rows(made), server.vectors(["one"], "sentiment"))


def test_errors(server: Server) -> None:
    ask: dict[str, Any] = {"input": ["x"], "api_base": f"{server.url}/v1", "max_retries": 0}
    with pytest.raises(litellm.NotFoundError):
        litellm.embedding(model="openai/nobody", api_key=server.key, **ask)
    # A year ago it knew a wrong key by OpenAI's very sentence alone.
    with pytest.raises((litellm.AuthenticationError, litellm.BadRequestError), match="401"):
        litellm.embedding(model="openai/sentiment", api_key="wrong", **ask)
    with pytest.raises(litellm.BadRequestError):
        litellm.embedding(model="openai/sentiment", api_key=server.key, dimensions=5_000, **ask)


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("cohere/rerank", "/v1/rerank"),
        ("cohere/rerank", "/v2/rerank"),
        ("hosted_vllm/rerank", ""),
        ("hosted_vllm/rerank", "/v1/rerank"),
        ("infinity/rerank", "/infinity"),
        ("jina_ai/rerank", "/v1/rerank"),
        ("huggingface/rerank", ""),
        ("huggingface/rerank", "/a/rerank"),
    ],
)
def test_rerank(server: Server, model: str, path: str) -> None:
    ranked = litellm.rerank(
        model=model,
        query=QUERY,
        documents=TEXTS,
        top_n=2,
        api_base=server.url + path,
        api_key=server.key,
    )
    expected = server.native("/rerank?adapter=rerank", {"query": QUERY, "texts": TEXTS})[:2]
    assert [one["index"] for one in ranked.results] == [one["index"] for one in expected]
    assert_close(
        [one["relevance_score"] for one in ranked.results], [one["score"] for one in expected]
    )
