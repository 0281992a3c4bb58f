"""The OpenAPI document keeps its word: schemathesis tries what it allows and what it forbids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.live import LiveServer, live_server
from tests.oracles import make_adapter, put
from tests.tiny import save_tiny_base

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
NEEDS_A_HEAD = {"/classify": "sentiment", "/predict": "sentiment", "/rerank": "ranker"}
PLACES = {"{deployment}": "base", "{model}": "sentiment", "{name}": "composed"}


@pytest.fixture(scope="session")
def contract_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    root = tmp_path_factory.mktemp("contract")
    base = save_tiny_base("bert", root / "base")
    server = live_server(model=str(base), store=root / "store", adapters_dir=root / "none")
    put(server.client, "sentiment", make_adapter(base, root / "a", 1, labels=2))
    put(server.client, "ranker", make_adapter(base, root / "b", 2, labels=1))
    for seed, name in enumerate(("banking77", "clinc150"), 3):  # of compose's example
        put(server.client, name, make_adapter(base, root / name, seed, labels=3))
    yield server
    server.stop()


def test_no_request_breaks_the_contract(
    contract_server: LiveServer, subtests: pytest.Subtests
) -> None:
    schema = schemathesis.openapi.from_url(f"{contract_server.url}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=10,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def try_it(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CHECKS)

        with subtests.test(operation=operation.label):
            try_it()


def test_every_documented_example_works_as_pasted(contract_server: LiveServer) -> None:
    document = contract_server.client.get("/openapi.json").json()
    bodies = 0
    for path, item in document["paths"].items():
        content = item.get("post", {}).get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema", {})
        title = schema.get("$ref", "").rpartition("/")[2]
        for example in document["components"]["schemas"].get(title, {}).get("examples", []):
            name = NEEDS_A_HEAD.get(path)
            query = {"adapter": name} if name else {}
            version = contract_server.client.get("/adapters/sentiment").json()["version"]
            url = path.replace("{version}", version)
            for place, value in PLACES.items():
                url = url.replace(place, value)
            answer = contract_server.client.post(url, params=query, json=example)
            assert answer.status_code in (200, 201), (path, answer.text)
            bodies += 1
    assert bodies >= 3


def test_what_the_routes_document_is_in_the_docs(contract_server: LiveServer) -> None:
    written = Path("docs/api.md").read_text(encoding="utf-8")
    for path in contract_server.client.get("/openapi.json").json()["paths"]:
        assert path in written, path
