"""mteb's wrappers for servers that speak OpenAI's interface."""

from __future__ import annotations

import pytest
from conftest import QUERY, TEXTS, Server, assert_close

try:
    from mteb.models import OpenAIAPIEncodeWrapper, OpenAIAPIRerankWrapper
except ImportError:  # a year ago mteb had none; its model for OpenAI's own takes a client of ours
    OpenAIAPIEncodeWrapper = OpenAIAPIRerankWrapper = None
from mteb.models.model_implementations.openai_models import OpenAIModel
from openai import OpenAI

WRAPPERS = pytest.mark.skipif(OpenAIAPIEncodeWrapper is None, reason="this mteb has no wrapper")


@WRAPPERS
@pytest.mark.parametrize(
    ("path", "model", "adapter"),
    [
        ("", "sentiment", "sentiment"),
        ("", "sentence-transformers/all-MiniLM-L6-v2", "base"),
        ("/a/sentiment", "sentiment", "sentiment"),
    ],
)
def test_embeddings(open_server: Server, path: str, model: str, adapter: str) -> None:
    wrapper = OpenAIAPIEncodeWrapper(open_server.url + path, model, max_retries=1)
    assert_close(wrapper._get_embeddings(TEXTS).tolist(), open_server.vectors(adapter=adapter))


@WRAPPERS
def test_rerank(open_server: Server) -> None:
    wrapper = OpenAIAPIRerankWrapper(open_server.url, "rerank", max_retries=1)
    scores = open_server.native("/rerank?adapter=rerank", {"query": QUERY, "texts": TEXTS})
    by_place = [one["score"] for one in sorted(scores, key=lambda one: one["index"])]
    assert_close(wrapper._rerank(QUERY, TEXTS).tolist(), by_place)


def test_openais_own_model_drops_what_is_before_the_slash(server: Server) -> None:
    class Words:  # tiktoken would load its words from the internet
        def encode(self, text: str) -> list[str]:
            return text.split()

        def decode(self, words: list[str]) -> str:
            return " ".join(words)

    client = OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiktoken.get_encoding", lambda _: Words())
        model = OpenAIModel(server.base, max_tokens=512, embed_dim=384, client=client)
    got = model.encode([{"text": TEXTS}], task_metadata=None, hf_split="", hf_subset="")  # type: ignore[arg-type]
    assert_close(got.tolist(), server.vectors())
