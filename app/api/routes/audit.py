"""GET /audit: who changed which adapter, when, and from where."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.access import access
from app.api.adapter_object import Answers
from app.api.answer import json_answer
from app.api.caller import Called
from app.api.dialect import documented
from app.api.serving import Served

router = APIRouter(tags=["running"])


ID = r"^(\d{1,20}(-[0-9a-f]{1,16})?)?$"  # with the second part where the store is a bucket


class AuditQuery(BaseModel):
    """Which records."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, max_length=63, description="Of this name only.")
    limit: int = Field(100, ge=1, le=1000, description="At most so many.")
    before: str = Field("", pattern=ID, description="Older than the record of this id.")


RECORD: dict[str, Any] = {
    "id": "01795000000000000000",
    "time": "2026-11-26T04:30:46Z",
    "action": "delete",
    "name": "sentiment",
    "from": "4f1c22ab90d3…",
    "to": None,
    "outcome": "changed",
    "error_type": None,
    "by": "alice",
    "address": "10.0.0.7",
    "request_id": "5f0c…",
}
AUDIT: Answers = {
    200: {
        "description": "The newest first; `next` is the id to give as `before`, null at the end.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["records", "next"],
                    "properties": {
                        "records": {"type": "array", "items": {"type": "object"}},
                        "next": {"type": ["string", "null"]},
                    },
                },
                "example": {"records": [RECORD], "next": None},
            }
        },
    },
    **documented(422, 503),
}


@router.get("/audit", response_class=Response, responses=AUDIT)
@access("admin key")
async def audit(query: Annotated[AuditQuery, Query()], caller: Called, serving: Served) -> Response:
    """Who changed which adapter, made and refused, also of names that are gone."""

    def wanted(record: dict[str, Any]) -> bool:
        name = record.get("name")
        if query.name is not None and name != query.name:
            return False
        return caller.sees_all or (isinstance(name, str) and caller.may_use(name))

    read = serving.installer.store.read_audit
    ask = serving.runtime.fetcher.ask
    records = await ask(read, query.before, query.limit + 1, wanted)
    page = records[: query.limit]
    following = page[-1]["id"] if len(records) > len(page) else None
    headers = {}
    if following is not None:
        more = {**query.model_dump(exclude_none=True), "before": following}
        headers["Link"] = f'</audit?{urlencode(more)}>; rel="next"'
    return json_answer({"records": page, "next": following}, headers)
