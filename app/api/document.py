"""The OpenAPI document: FastAPI's, with keys, names for what it shares, and sentences.

Says of each route what its access says: which keys it takes, and which refusals may come.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, assert_never

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from app.api.access import Access, Needs, access_of
from app.api.dialect import Dialect

SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of BERT_LORA_API_KEYS or BERT_LORA_ADMIN_KEYS.",
    },
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
ANY_KEY: list[dict[str, list[str]]] = [
    {"bearer": []},
    {"header": []},
    {},
]  # {}: a server without keys asks for none
TAGS = {
    "inference": "Embeddings and labels, each input through the adapter of its choice.",
    "text-embeddings-inference": "Its calls, for its clients: one adapter each.",
    "adapters": "Adapters come, go, are versioned, tried and merged while traffic flows.",
    "vllm": "vLLM's own calls, with OpenAI's errors.",
    "kserve": "The open inference protocol, as KServe and Triton speak it.",
    "running": "Probes, metrics and what the server is.",
}
REFS = "#/components/schemas/"
Schema = dict[str, Any]


def documented_answer(
    shape: Any, description: str, example: Any = None
) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for a 200 of this shape: a model, a dataclass or a list of them.

    It says what the answer is and checks nothing: an answer is written from memory.
    """
    media: dict[str, Any] = {"schema": TypeAdapter(shape).json_schema()}
    if example is not None:
        media["example"] = example
    return {200: {"description": description, "content": {"application/json": media}}}


def describe(app: FastAPI) -> None:
    """Make `/openapi.json` and the pages on it show the document that is written here."""

    def document() -> Schema:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> Schema:
    routes = [r for r in app.routes if isinstance(r, APIRoute) and r.include_in_schema]
    tags = [{"name": name, "description": text} for name, text in TAGS.items()]
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=routes,
        tags=tags,
    )
    schemas: dict[str, Schema] = {}
    ids: set[str] = set()
    for route in routes:
        for method in route.methods or ():
            operation = document["paths"][route.path_format][method.lower()]
            _tell(operation, route, method)
            if operation["operationId"] in ids:  # one function on several paths
                operation["operationId"] += f"_{route.path.split('/')[1]}"
            ids.add(operation["operationId"])
            _name_shared(operation, schemas)
    document["components"] = {"schemas": dict(sorted(schemas.items())), "securitySchemes": SCHEMES}
    return document


def _tell(operation: Schema, route: APIRoute, method: str) -> None:
    """Sentences, keys and statuses of one operation."""
    access = access_of(route)
    summary, _, more = inspect.cleandoc(route.endpoint.__doc__ or "").partition("\n\n")
    operation["summary"] = " ".join(summary.split())
    operation["description"] = more or operation["summary"]
    name = route.endpoint.__name__
    operation["operationId"] = name if method != "HEAD" else f"head_{name}"
    operation["security"] = _security(access.needs)
    responses: Schema = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):  # FastAPI's own, which nobody gets
        del responses["422"]
        responses |= _refusals(access.dialect, access.dialect.statuses.get("validation", 422))
    for status in ("401", "403"):
        if access.needs == "nothing":
            responses.pop(status, None)
    responses |= _refusals(access.dialect, *_may_come(access))
    operation["responses"] = dict(sorted(responses.items()))


def _security(needs: Needs) -> list[dict[str, list[str]]]:
    match needs:
        case "nothing":
            return []
        case "any key" | "unrestricted key" | "admin key":
            return ANY_KEY
        case _:
            assert_never(needs)


def _may_come(access: Access) -> Iterator[int]:
    """Statuses that the middlewares answer, whatever the route says."""
    if access.needs != "nothing":
        yield from (401, 403)
    if access.model:
        yield from (413, 429, 503, 504)


def _refusals(dialect: Dialect, *statuses: int) -> Schema:
    documented = dialect.documented(*statuses)
    return {str(status): documented[status] for status in statuses}


def _name_shared(operation: Schema, schemas: dict[str, Schema]) -> None:
    """Put each titled object of the bodies and answers among the components, once."""
    bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
    for body in bodies:
        for media in body.get("content", {}).values():
            if "schema" in media:
                media["schema"] = _named(media["schema"], schemas)


def _named(schema: Any, schemas: dict[str, Schema]) -> Any:
    """The schema with a reference in place of each object that has a title; those into schemas.

    Raises ValueError for two objects of one title.
    """
    if isinstance(schema, list):
        return [_named(item, schemas) for item in schema]
    if not isinstance(schema, dict):
        return schema
    definitions = schema.get("$defs", {})
    for title, definition in definitions.items():
        named = _named(definition, schemas)
        if named != {"$ref": REFS + title}:  # else it has a title of its own, and is kept
            _keep(title, named, schemas)
    inner = {key: _named(value, schemas) for key, value in schema.items() if key != "$defs"}
    if (reference := inner.get("$ref", "")) and str(reference).startswith("#/$defs/"):
        inner["$ref"] = REFS + reference.removeprefix("#/$defs/")
    title = inner.get("title")
    if not isinstance(title, str) or "properties" not in inner:
        return inner
    _keep(title, inner, schemas)
    return {"$ref": REFS + title}


def _keep(title: str, schema: Schema, schemas: dict[str, Schema]) -> None:
    if schemas.setdefault(title, schema) != schema:
        raise ValueError(f"two schemas are called {title}")
