"""huggingface_hub's InferenceClient by URL, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from conftest import TEXTS, Server, assert_close
from huggingface_hub import AsyncInferenceClient, InferenceClient

PATHS = ["/a/sentiment", "/a/sentiment/", "/embed?adapter=sentiment", "/?adapter=sentiment"]


@pytest.mark.parametrize("path", PATHS)
def test_feature_extraction_through_an_adapter(server: Server, path: str) -> None:
    client = InferenceClient(server.url + path, token=server.key)
    got = client.feature_extraction(TEXTS[0])
    assert_close(got.tolist(), server.vectors(TEXTS[:1], "sentiment"))


def test_feature_extraction_by_header_and_of_the_base(server: Server) -> None:
    by_header = InferenceClient(server.url, token=server.key, headers={"X-Adapter": "sentiment"})
    got = by_header.feature_extraction(TEXTS[0], normalize=True, truncate=True)
    assert_close(got.tolist(), server.vectors(TEXTS[:1], "sentiment"))
    base = InferenceClient(server.url, token=server.key)
    assert_close(base.feature_extraction(TEXTS[0]).tolist(), server.vectors(TEXTS[:1]))
    cut = base.feature_extraction(TEXTS[0], truncate=True, truncation_direction="Left")
    assert_close(cut.tolist(), server.vectors(TEXTS[:1]))


def test_async(server: Server) -> None:
    async def ask() -> Any:
        async with AsyncInferenceClient(f"{server.url}/a/sentiment", token=server.key) as client:
            return await client.feature_extraction(TEXTS[0])

    assert_close(asyncio.run(ask()).tolist(), server.vectors(TEXTS[:1], "sentiment"))


@pytest.mark.parametrize("path", ["/predict?adapter=sentiment", "/a/sentiment/predict"])
def test_text_classification(server: Server, path: str) -> None:
    client = InferenceClient(server.url + path, token=server.key)
    got = client.text_classification(TEXTS[0])
    expected = server.native("/classify?adapter=sentiment", {"inputs": TEXTS[0]})
    assert [one.label for one in got] == [one["label"] for one in expected]
    assert_close([one.score for one in got], [one["score"] for one in expected])


def test_sentence_similarity(server: Server) -> None:
    client = InferenceClient(f"{server.url}/a/sentiment/similarity", token=server.key)
    got = client.sentence_similarity(TEXTS[0], TEXTS[1:])
    first, *others = server.vectors(adapter="sentiment")
    assert_close(got, [sum(x * y for x, y in zip(first, other, strict=True)) for other in others])


def test_errors(server: Server) -> None:
    for path, key, status in (
        ("/a/nobody", server.key, 404),
        ("/a/sentiment", "wrong", 401),
    ):
        with pytest.raises(Exception) as refused:
            InferenceClient(server.url + path, token=key).feature_extraction("x")
        assert refused.value.response.status_code == status  # type: ignore[attr-defined]


def test_a_429_is_told_with_when_to_come_again(
    server: Server, spent_key: Callable[[], str]
) -> None:
    with pytest.raises(Exception, match="429"):
        InferenceClient(f"{server.url}/a/sentiment", token=spent_key()).feature_extraction("x")
