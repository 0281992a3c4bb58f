"""The openai client, as it sends by default, against our numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch
from torch.testing import assert_close

from tests.live import LiveServer
from tests.oracles import FP32, SENTENCES


@pytest.fixture
def openai_client(tiny_server: LiveServer, served: httpx.Client) -> Iterator[openai.OpenAI]:
    url = f"{tiny_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def native(client: httpx.Client, query: str, inputs: object) -> torch.Tensor:
    return torch.tensor(client.post(f"/embed{query}", json={"inputs": inputs}).json())


@pytest.mark.parametrize(
    ("model", "query"),
    [("a", "?adapter=a"), ("tiny-bert:a", "?adapter=a"), ("tiny-bert", ""), ("base", "")],
)
def test_model_chooses_the_adapter(
    openai_client: openai.OpenAI, served: httpx.Client, model: str, query: str
) -> None:
    made = openai_client.embeddings.create(model=model, input=SENTENCES)
    got = torch.tensor([e.embedding for e in made.data])
    assert_close(got, native(served, query, SENTENCES), **FP32)
    assert [e.index for e in made.data] == list(range(len(SENTENCES)))
    assert made.usage.total_tokens > len(SENTENCES)


def test_versions_dimensions_floats_and_token_ids(
    openai_client: openai.OpenAI, served: httpx.Client
) -> None:
    digest = served.get("/adapters/a").json()["version"]
    create = openai_client.embeddings.create
    whole = create(model=f"tiny-bert:a@{digest[:16]}", input="good").data[0].embedding
    floats = create(model="a", input="good", encoding_format="float").data[0].embedding
    assert_close(torch.tensor(whole), torch.tensor(floats), **FP32)
    cut = create(model="a", input="good", dimensions=8).data[0].embedding
    assert len(cut) == 8
    assert sum(x * x for x in cut) == pytest.approx(1, abs=1e-5)
    ids = create(model="a", input=[[2, 7, 8, 3], [2, 9, 3]])
    assert_close(
        torch.tensor([e.embedding for e in ids.data]),
        native(served, "?adapter=a", [[2, 7, 8, 3], [2, 9, 3]]),
        **FP32,
    )


def test_models_lists_the_base_and_every_adapter(openai_client: openai.OpenAI) -> None:
    assert [m.id for m in openai_client.models.list()] == ["tiny-bert", "a", "b", "c"]


@pytest.mark.parametrize(
    ("model", "parent"),
    [("tiny-bert", None), ("base", None), ("a", "tiny-bert"), ("tiny-bert:a", "tiny-bert")],
)
def test_a_model_is_retrieved_by_what_model_may_be(
    openai_client: openai.OpenAI, model: str, parent: str | None
) -> None:
    got = openai_client.models.retrieve(model)
    assert (got.id, (got.model_extra or {}).get("parent")) == (model, parent)
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("org/nobody")


@pytest.mark.parametrize(
    ("more", "kind", "code", "param"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found", "model"),
        ({"model": "a@00000000"}, openai.NotFoundError, "model_not_found", "model"),
        ({"input": []}, openai.BadRequestError, "invalid_value", "input"),
        ({"input": ""}, openai.BadRequestError, "invalid_value", "input"),
        ({"input": ["x", ""]}, openai.BadRequestError, "invalid_value", "input[1]"),
        ({"dimensions": 0}, openai.BadRequestError, "invalid_value", "dimensions"),
        ({"dimensions": 100_000}, openai.BadRequestError, "invalid_value", "dimensions"),
        ({"input": ["x"] * 2_049}, openai.BadRequestError, "array_above_max_length", None),
        ({"extra_body": {"normalise": True}}, openai.BadRequestError, "invalid_value", "normalise"),
        ({"extra_headers": {"X-Adapter": "b"}}, openai.BadRequestError, "malformed", None),
    ],
)
def test_errors_are_the_clients_own(
    openai_client: openai.OpenAI,
    more: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str,
    param: str | None,
) -> None:
    with pytest.raises(kind) as refused:
        openai_client.embeddings.create(**{"model": "a", "input": "x", **more})
    assert (refused.value.code, refused.value.param) == (code, param)
    assert refused.value.type == "invalid_request_error"


def test_members_that_are_null_are_as_if_left_out(served: httpx.Client) -> None:
    nulls = dict.fromkeys(["encoding_format", "dimensions", "user", "normalize", "prompt"])
    body = {"model": "a", "input": "good"}
    with_nulls = served.post("/v1/embeddings", json={**body, **nulls}).json()
    assert with_nulls["data"] == served.post("/v1/embeddings", json=body).json()["data"]


@pytest.mark.parametrize(
    ("path", "headers", "adapter", "named"),
    [
        ("/v1/embeddings", {}, "base", "tiny-bert"),
        ("/a/a/v1/embeddings", {}, "a", "a"),
        ("/v1/embeddings?adapter=a", {}, "a", "a"),
        ("/openai/v1/embeddings", {"X-Adapter": "a"}, "a", "a"),
        ("/invocations", {"X-Amzn-SageMaker-Adapter-Identifier": "a"}, "a", "a"),
    ],
)
def test_a_body_may_leave_model_out_as_tei_s_and_vllm_s_may(
    served: httpx.Client, path: str, headers: dict[str, str], adapter: str, named: str
) -> None:
    answer = served.post(path, json={"input": "good"}, headers=headers)
    assert answer.status_code == 200, answer.text
    expected = native(served, f"?adapter={adapter}", "good")
    assert_close(torch.tensor([answer.json()["data"][0]["embedding"]]), expected, **FP32)
    assert answer.json()["model"] == named


def test_our_own_members_are_honoured(openai_client: openai.OpenAI, served: httpx.Client) -> None:
    wish = {"normalize": False, "pooling": "cls", "prompt": "good ", "truncation_direction": "Left"}
    made = openai_client.embeddings.create(model="a", input=SENTENCES, extra_body=wish)
    expected = served.post("/embed?adapter=a", json={"inputs": SENTENCES, **wish}).json()
    got = torch.tensor([e.embedding for e in made.data])
    assert_close(got, torch.tensor(expected), **FP32)


def test_as_many_inputs_as_openai_takes(openai_client: openai.OpenAI) -> None:
    assert len(openai_client.embeddings.create(model="a", input=["x"] * 2_048).data) == 2_048


@pytest.mark.parametrize("deployment", ["a", "tiny-bert:a"])
def test_azures_client_as_it_is(
    tiny_server: LiveServer, served: httpx.Client, deployment: str
) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=tiny_server.url, api_key="none", api_version="2024-10-21", max_retries=0
    ) as client:
        made = client.embeddings.create(model=deployment, input="good")
        assert_close(
            torch.tensor([made.data[0].embedding]), native(served, "?adapter=a", "good"), **FP32
        )
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="nobody", input="good")
