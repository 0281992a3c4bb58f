"""The openai client, as it sends by default, against our numbers."""

from __future__ import annotations

from collections.abc import Iterator

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


def test_errors_are_the_clients_own(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        openai_client.embeddings.create(model="nobody", input="x")
    assert missing.value.body["type"] == "adapter_not_found"  # type: ignore[index]
    with pytest.raises(openai.UnprocessableEntityError) as empty:
        openai_client.embeddings.create(model="a", input=[])
    assert empty.value.body["param"] == "input"  # type: ignore[index]


def test_models_lists_the_base_and_every_adapter(openai_client: openai.OpenAI) -> None:
    assert [m.id for m in openai_client.models.list()] == ["tiny-bert", "a", "b", "c"]


def test_another_spelling_beside_model_is_400(served: httpx.Client) -> None:
    body = {"model": "a", "input": "good"}
    for query, more in (("?adapter=b", {}), ("", {"adapters": ["b"]})):
        answer = served.post(f"/v1/embeddings{query}", json={**body, **more})
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "malformed")
