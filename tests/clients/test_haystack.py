"""haystack: embedders for OpenAI's interface and Hugging Face's, rankers for TEI and vLLM."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import QUERY, TEXTS, Server, assert_close
from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret

try:
    from haystack_integrations.components.embedders.huggingface_api import (
        HuggingFaceAPIDocumentEmbedder,
        HuggingFaceAPITextEmbedder,
    )
    from haystack_integrations.components.embedders.vllm import VLLMTextEmbedder
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
    from haystack_integrations.components.rankers.vllm import VLLMRanker
except ImportError:  # a year ago they were haystack's own, and there was none for vLLM
    from haystack.components.embedders import (
        HuggingFaceAPIDocumentEmbedder,
        HuggingFaceAPITextEmbedder,
    )
    from haystack.components.rankers import HuggingFaceTEIRanker

    VLLMTextEmbedder = VLLMRanker = None

VLLM = pytest.mark.skipif(VLLMRanker is None, reason="this haystack has no component for vLLM")


def documents() -> list[Document]:
    return [Document(content=text) for text in TEXTS]


def rows(made: dict[str, Any]) -> list[Any]:
    return [document.embedding for document in made["documents"]]


@pytest.mark.parametrize(
    ("path", "model", "adapter"),
    [
        ("/v1", "sentiment", "sentiment"),
        ("/v1", "sentence-transformers/all-MiniLM-L6-v2", "base"),
        ("/a/sentiment/v1", "text-embedding-ada-002", "sentiment"),
    ],
)
def test_openai(server: Server, path: str, model: str, adapter: str) -> None:
    more: dict[str, Any] = {
        "api_key": Secret.from_token(server.key),
        "api_base_url": server.url + path,
        "model": model,
    }
    text = OpenAITextEmbedder(**more).run(QUERY)
    assert_close(text["embedding"], server.vectors([QUERY], adapter)[0])
    made = OpenAIDocumentEmbedder(**more, progress_bar=False).run(documents())
    assert_close(rows(made), server.vectors(adapter=adapter))


@pytest.mark.parametrize("path", ["/a/sentiment", "/embed?adapter=sentiment"])
@pytest.mark.parametrize("normalize", [True, False])
def test_hugging_face(server: Server, path: str, normalize: bool) -> None:
    more: dict[str, Any] = {
        "api_type": "text_embeddings_inference",
        "api_params": {"url": server.url + path},
        "token": Secret.from_token(server.key),
        "normalize": normalize,
    }
    expected = server.vectors(adapter="sentiment", normalize=normalize)
    text = HuggingFaceAPITextEmbedder(**more).run(TEXTS[0])
    assert_close(text["embedding"], expected[0])
    made = HuggingFaceAPIDocumentEmbedder(**more, progress_bar=False).run(documents())
    assert_close(rows(made), expected)


@pytest.mark.parametrize(
    "path", ["", "/a/rerank/"]
)  # it asks /rerank at the server's root in any case
def test_teis_ranker_which_can_name_no_adapter(server: Server, path: str) -> None:
    ranker = HuggingFaceTEIRanker(
        url=server.url + path, token=Secret.from_token(server.key), top_k=2
    )
    ranked = ranker.run(query=QUERY, documents=documents())["documents"]
    expected = server.native("/rerank?adapter=rerank", {"query": QUERY, "texts": TEXTS})[:2]
    assert [one.content for one in ranked] == [TEXTS[one["index"]] for one in expected]
    assert_close([one.score for one in ranked], [one["score"] for one in expected])


@VLLM
def test_vllm(server: Server) -> None:
    more: dict[str, Any] = {
        "api_base_url": f"{server.url}/v1",
        "api_key": Secret.from_token(server.key),
    }
    embed: dict[str, Any] = {"truncate_prompt_tokens": 256, "use_activation": False}
    embedder = VLLMTextEmbedder(model="sentiment", extra_parameters=embed, **more)
    expected = server.vectors([QUERY], "sentiment", normalize=False)[0]
    assert_close(embedder.run(QUERY)["embedding"], expected)
    rerank = {"truncate_prompt_tokens": 256}  # as its documentation has it
    ranker = VLLMRanker(model="rerank", extra_parameters=rerank, **more)
    ranked = ranker.run(query=QUERY, documents=documents())
    expected = server.native("/rerank?adapter=rerank", {"query": QUERY, "texts": TEXTS})
    assert_close([one.score for one in ranked["documents"]], [one["score"] for one in expected])
