"""Every way to name an adapter gives the same answer as ?adapter=, on each route that runs the model."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.live import LiveServer

TEXTS = ["good", "bad film"]
BODIES: dict[str, dict[str, Any]] = {
    "/embed": {"inputs": TEXTS},
    "/classify": {"inputs": TEXTS},
    "/predict": {"inputs": [["good"], ["bad film"]]},
    "/v1/embeddings": {"model": "tiny-bert", "input": TEXTS},
}
WAYS: list[tuple[str, str, dict[str, str]]] = [
    ("", "?adapter={name}", {}),
    ("", "", {"X-Adapter": "{name}"}),
    ("", "", {"X-Amzn-SageMaker-Adapter-Identifier": "{name}"}),
    ("/a/{name}", "", {}),
    ("/a/{name}", "?adapter={name}", {"X-Adapter": "{name}"}),
    ("/a/tiny-bert:{name}", "", {}),
]


def ask(
    client: httpx.Client, path: str, way: tuple[str, str, dict[str, str]], name: str
) -> httpx.Response:
    prefix, query, headers = way
    url = f"{prefix}{path}{query}".replace("{name}", name)
    return client.post(
        url,
        json=BODIES[path],
        headers={key: value.replace("{name}", name) for key, value in headers.items()},
    )


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("way", WAYS[1:])
def test_every_way_to_choose_gives_the_same(
    served: httpx.Client, path: str, way: tuple[str, str, dict[str, str]]
) -> None:
    expected, got = ask(served, path, WAYS[0], "c"), ask(served, path, way, "c")
    assert got.status_code == 200, got.text
    assert got.headers["x-adapter"] == expected.headers["x-adapter"]
    assert got.headers["x-adapter"].startswith("c@")
    for answer in (got, expected):
        assert answer.json()
    assert got.content.replace(b"tiny-bert:c", b"c") == expected.content


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_that_is_not_there_is_404_however_it_is_named(
    served: httpx.Client, path: str, way: tuple[str, str, dict[str, str]]
) -> None:
    assert ask(served, path, way, "nobody").status_code == 404


@pytest.mark.parametrize("path", BODIES)
def test_two_ways_that_disagree_are_400(served: httpx.Client, path: str) -> None:
    for prefix, query, header in (
        ("/a/a", "?adapter=b", None),
        ("/a/a", "", "b"),
        ("", "?adapter=a", "b"),
    ):
        answer = served.post(
            f"{prefix}{path}{query}",
            json=BODIES[path],
            headers={"X-Adapter": header} if header else {},
        )
        assert answer.status_code == 400, answer.text


def test_model_beside_another_choice_may_be_a_clients_default_but_no_other_adapter(
    served: httpx.Client,
) -> None:
    expected = served.post("/embed?adapter=a", json={"inputs": "good"})
    for model in ("text-embedding-3-small", "tiny-bert", "a", "tiny-bert:a"):
        body = {"model": model, "input": "good"}
        answer = served.post("/a/a/v1/embeddings", json=body)
        assert answer.json()["data"][0]["embedding"] == expected.json()[0], model
        assert answer.json()["model"] == "a"
    answer = served.post("/a/a/v1/embeddings", json={"model": "b", "input": "good"})
    assert answer.status_code == 400


def test_a_client_that_sets_a_base_url_alone_sees_its_adapter_alone(
    tiny_server: LiveServer, served: httpx.Client
) -> None:
    with openai.OpenAI(base_url=f"{tiny_server.url}/a/a/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["a"]


def test_what_manages_adapters_does_not_stand_below_the_prefix(served: httpx.Client) -> None:
    for path in ("/adapters", "/adapters/a", "/metrics"):
        assert served.get(f"/a/a{path}").status_code == 404
