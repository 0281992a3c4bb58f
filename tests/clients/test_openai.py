"""openai: sync, async, raw, and Azure's."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Callable
from typing import Any

import openai
import pytest
from conftest import TEXTS, Server, assert_close

WAYS: list[
    tuple[str, str, dict[str, Any]]
] = [  # base URL behind the server's, model, more of the client
    ("/v1", "sentiment", {}),
    ("/v1", "all-MiniLM-L6-v2:sentiment", {}),
    ("/v1", "sentence-transformers/all-MiniLM-L6-v2:sentiment", {}),
    ("/v1", "text-embedding-3-small", {"default_headers": {"X-Adapter": "sentiment"}}),
    ("/v1", "text-embedding-3-small", {"default_query": {"adapter": "sentiment"}}),
    ("/a/sentiment/v1", "text-embedding-3-small", {}),
    ("/openai/v1", "sentiment", {}),
]
BASES = ["base", "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"]


def client_of(server: Server, path: str = "/v1", **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + path, api_key=server.key, max_retries=0, **more)


def rows(made: Any) -> list[list[float]]:
    return [e.embedding for e in made.data]


@pytest.mark.parametrize(("path", "model", "more"), WAYS)
def test_an_adapter_is_chosen_in_every_way(
    server: Server, path: str, model: str, more: dict[str, Any]
) -> None:
    made = client_of(server, path, **more).embeddings.create(model=model, input=TEXTS)
    assert_close(rows(made), server.vectors(adapter="sentiment"))


@pytest.mark.parametrize("model", BASES)
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_the_base_by_each_of_its_names(server: Server, model: str, encoding: Any) -> None:
    made = client_of(server).embeddings.create(model=model, input=TEXTS, encoding_format=encoding)
    vectors = rows(made)
    if encoding == "base64":  # asked for by hand it is handed through
        vectors = [
            list(struct.unpack("<384f", base64.b64decode(v))) if isinstance(v, str) else v
            for v in vectors
        ]
    assert_close(vectors, server.vectors())


def test_async(server: Server) -> None:
    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:
            return await client.embeddings.create(model="sentiment", input=TEXTS)

    assert_close(rows(asyncio.run(ask())), server.vectors(adapter="sentiment"))


def test_raw(server: Server) -> None:
    raw = client_of(server).embeddings.with_raw_response.create(model="sentiment", input=TEXTS)
    assert raw.headers["x-adapter"].startswith("sentiment@")
    assert_close(rows(raw.parse()), server.vectors(adapter="sentiment"))


@pytest.mark.parametrize("deployment", ["sentiment", "base", "all-MiniLM-L6-v2"])
def test_azure(server: Server, deployment: str) -> None:
    client = openai.AzureOpenAI(
        azure_endpoint=server.url, api_key=server.key, api_version="2024-10-21", max_retries=0
    )
    made = client.embeddings.create(model=deployment, input=TEXTS)
    adapter = "sentiment" if deployment == "sentiment" else "base"
    assert_close(rows(made), server.vectors(adapter=adapter))


def test_dimensions_and_our_members(server: Server) -> None:
    create = client_of(server).embeddings.create
    cut = create(model="sentiment", input=TEXTS, dimensions=64)
    assert_close(rows(cut), server.vectors(adapter="sentiment", dimensions=64))
    plain = create(model="sentiment", input=TEXTS, extra_body={"normalize": False})
    assert_close(rows(plain), server.vectors(adapter="sentiment", normalize=False))


def test_as_many_inputs_as_openai_takes(server: Server) -> None:
    made = client_of(server).embeddings.create(model="sentiment", input=["one"] * 2_048)
    assert [e.index for e in made.data] == list(range(2_048))


def test_models(server: Server) -> None:
    client = client_of(server)
    ids = [model.id for model in client.models.list()]
    assert ids[0] == server.base
    for spelled in ("sentiment", server.base, "all-MiniLM-L6-v2"):
        assert client.models.retrieve(spelled).id == spelled
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("more", "kind", "code"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found"),
        ({"input": ""}, openai.BadRequestError, "invalid_value"),
        ({"input": []}, openai.BadRequestError, "invalid_value"),
        ({"dimensions": 5_000}, openai.BadRequestError, "invalid_value"),
        ({"extra_body": {"nonsense": 1}}, openai.BadRequestError, "invalid_value"),
        ({"input": [101, 102]}, None, None),
        ({"input": [[9906, 1917]]}, openai.BadRequestError, "invalid_value"),
    ],
)
def test_errors(server: Server, more: dict[str, Any], kind: Any, code: str | None) -> None:
    create = client_of(server).embeddings.create
    body = {"model": "sentiment", "input": "x", **more}
    if kind is None:
        assert create(**body).data
        return
    with pytest.raises(kind) as refused:
        create(**body)
    assert refused.value.code == code


def test_a_wrong_key(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as refused:
        client.embeddings.create(model="base", input="x")
    assert refused.value.code == "invalid_api_key"


def test_a_429_is_retried_until_it_is_served(server: Server, spent_key: Callable[[], str]) -> None:
    key = spent_key()
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=3)
    made = client.embeddings.create(model="sentiment", input=TEXTS[:1])
    assert_close(rows(made), server.vectors(TEXTS[:1], "sentiment"))
    impatient = openai.OpenAI(base_url=f"{server.url}/v1", api_key=spent_key(), max_retries=0)
    with pytest.raises(openai.RateLimitError) as refused:
        impatient.embeddings.create(model="sentiment", input=TEXTS[:1])
    assert refused.value.code == "rate_limit_exceeded"
