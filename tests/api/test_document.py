"""The OpenAPI document says of each call what the call's own declaration says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute

from app.api.access import access_of
from app.main import build
from app.settings import Settings

APP = build(Settings())
DOCUMENT = APP.openapi()
CALLS = [
    (method.lower(), route)
    for route in APP.routes
    if isinstance(route, APIRoute) and route.include_in_schema
    for method in sorted(route.methods or ())
]


def operation(method: str, route: APIRoute) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][route.path_format][method]
    return found


def test_each_call_has_a_name_of_its_own() -> None:
    ids = [operation(*call)["operationId"] for call in CALLS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("method", "route"), CALLS, ids=lambda part: getattr(part, "path", part))
def test_a_call_is_told_in_a_sentence_with_its_keys_and_its_refusals(
    method: str, route: APIRoute
) -> None:
    told, needs = operation(method, route), access_of(route).needs
    assert told["summary"].endswith(".")
    assert bool(told["security"]) is (needs != "nothing")
    assert ("401" in told["responses"]) is (needs != "nothing")
    assert ("429" in told["responses"]) >= access_of(route).model
    assert "HTTPValidationError" not in str(told)


def schemas(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        if isinstance(part.get("type"), str | list):
            yield part
        for value in part.values():
            yield from schemas(value)
    elif isinstance(part, list):
        for value in part:
            yield from schemas(value)


def test_no_list_is_of_nobody_knows_what() -> None:
    bare = [s for s in schemas(DOCUMENT) if "array" in s["type"] and not s.get("items")]
    assert bare == []


def test_each_reference_leads_to_a_component_and_each_component_is_used() -> None:
    text = str(DOCUMENT)
    names = DOCUMENT["components"]["schemas"]
    assert [name for name in names if f"#/components/schemas/{name}'" not in text] == []
    assert text.count("'$ref': ") == text.count("'$ref': '#/components/schemas/")
