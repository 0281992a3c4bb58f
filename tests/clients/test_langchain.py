"""langchain-openai, langchain-huggingface, langchain-community."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from conftest import QUERY, TEXTS, Server, assert_close
from huggingface_hub import AsyncInferenceClient, InferenceClient
from langchain_community.document_compressors import JinaRerank
from langchain_community.document_compressors.infinity_rerank import InfinityRerank
from langchain_community.embeddings import InfinityEmbeddings
from langchain_core.documents import Document
from langchain_huggingface import HuggingFaceEndpointEmbeddings
from langchain_openai import AzureOpenAIEmbeddings, OpenAIEmbeddings


def openai_of(server: Server, path: str = "/v1", **more: Any) -> OpenAIEmbeddings:
    settings = {
        "api_key": server.key,
        "check_embedding_ctx_length": False,
        "max_retries": 0,
        **more,
    }
    return OpenAIEmbeddings(base_url=server.url + path, **settings)


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1", {"model": "sentiment"}),
        ("/v1", {"model": "all-MiniLM-L6-v2:sentiment"}),
        ("/v1", {"default_headers": {"X-Adapter": "sentiment"}}),
        ("/a/sentiment/v1", {}),
    ],
)
def test_openai_through_an_adapter(server: Server, path: str, more: dict[str, Any]) -> None:
    embeddings = openai_of(server, path, **more)
    assert_close(embeddings.embed_documents(TEXTS), server.vectors(adapter="sentiment"))
    assert_close(embeddings.embed_query(QUERY), server.vectors([QUERY], "sentiment")[0])
    assert_close(
        asyncio.run(embeddings.aembed_documents(TEXTS)), server.vectors(adapter="sentiment")
    )


def test_openai_with_the_base(server: Server) -> None:
    assert_close(openai_of(server, model=server.base).embed_documents(TEXTS), server.vectors())


def test_openais_token_ids_are_refused_and_never_taken_for_ours(server: Server) -> None:
    class Numbers:  # tiktoken would load its words from the internet
        def encode(self, text: str, **_: Any) -> list[int]:
            return [9906] * len(text.split())

        encode_ordinary = encode

    embeddings = openai_of(server, model="sentiment", check_embedding_ctx_length=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiktoken.encoding_for_model", lambda _: Numbers())
        patch.setattr("tiktoken.get_encoding", lambda _: Numbers())
        with pytest.raises(Exception, match="check_embedding_ctx_length=False"):
            embeddings.embed_documents(TEXTS)


def test_openai_retries_a_429(server: Server, spent_key: Callable[[], str]) -> None:
    embeddings = openai_of(server, model="sentiment", api_key=spent_key(), max_retries=3)
    assert_close(embeddings.embed_query("one"), server.vectors(["one"], "sentiment")[0])


def test_azure(server: Server) -> None:
    embeddings = AzureOpenAIEmbeddings(
        azure_endpoint=server.url,
        azure_deployment="sentiment",
        api_key=server.key,  # type: ignore[arg-type]
        api_version="2024-10-21",
        check_embedding_ctx_length=False,
    )
    assert_close(embeddings.embed_documents(TEXTS), server.vectors(adapter="sentiment"))


@pytest.mark.parametrize("path", ["/a/sentiment", "/a/sentiment/", "/embed?adapter=sentiment"])
def test_huggingface_with_a_client_of_ours(server: Server, path: str) -> None:
    url = server.url + path
    embeddings = HuggingFaceEndpointEmbeddings(model=url, huggingfacehub_api_token=server.key)
    embeddings.client = InferenceClient(url, token=server.key)
    embeddings.async_client = AsyncInferenceClient(url, token=server.key)
    assert_close(embeddings.embed_documents(TEXTS), server.vectors(adapter="sentiment"))
    assert_close(embeddings.embed_query(QUERY), server.vectors([QUERY], "sentiment")[0])


def test_huggingface_with_the_base(server: Server) -> None:
    embeddings = HuggingFaceEndpointEmbeddings(
        model=server.url, huggingfacehub_api_token=server.key
    )
    assert_close(embeddings.embed_documents(TEXTS), server.vectors())


@pytest.mark.parametrize(
    ("path", "model", "adapter"),
    [
        ("/infinity", "sentiment", "sentiment"),
        ("/infinity", "all-MiniLM-L6-v2", "base"),
        ("/a/sentiment/infinity", "michaelfeil/bge-small-en-v1.5", "sentiment"),
    ],
)
def test_infinity(open_server: Server, path: str, model: str, adapter: str) -> None:
    embeddings = InfinityEmbeddings(model=model, infinity_api_url=open_server.url + path)
    assert_close(embeddings.embed_documents(TEXTS), open_server.vectors(adapter=adapter))


DOCUMENTS = [Document(page_content=text) for text in TEXTS]


def order(ranked: Any) -> list[str]:
    return [document.page_content for document in ranked]


def test_jina_rerank(server: Server) -> None:
    ranker = JinaRerank(model="rerank", jina_api_key=server.key, top_n=2)
    ranker.session.headers["Authorization"] = f"Bearer {server.key}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "langchain_community.document_compressors.jina_rerank.JINA_API_URL",
            f"{server.url}/v1/rerank",
        )
        ranked = ranker.compress_documents(DOCUMENTS, QUERY)
    assert order(ranked) == best_first(server)[:2]


def test_infinity_rerank(open_server: Server) -> None:
    from infinity_client import Client

    ranker = InfinityRerank(
        client=Client(base_url=f"{open_server.url}/infinity"), model="rerank", top_n=2
    )
    ranked = ranker.compress_documents(DOCUMENTS, QUERY)
    assert order(ranked) == best_first(open_server)[:2]


def best_first(server: Server) -> list[str]:
    ranked = server.native("/rerank?adapter=rerank", {"query": QUERY, "texts": TEXTS})
    return [TEXTS[one["index"]] for one in ranked]
