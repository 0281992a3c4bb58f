"""GET, HEAD, DELETE /adapters/{name}; its files; merge and unmerge."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.adapters.values import Task
from app.api.access import access
from app.api.adapter_object import (
    LIST,
    NOTHING,
    ONE,
    AdapterName,
    Answers,
    describe,
    etag,
    precondition,
    tags_match,
)
from app.api.answer import json_answer
from app.api.caller import Called
from app.api.dialect import documented
from app.api.document import documented_answer
from app.api.serving import Served, Serving
from app.catalog import merging
from app.catalog.listing import page
from app.catalog.registry import Name, Registry
from app.catalog.stored_names import WHOLE
from app.catalog.stored_version import Changes
from app.inference.caller import Caller
from app.inference.runtime import Runtime

router = APIRouter(prefix="/adapters", tags=["adapters"])


FILES: Answers = {
    200: {
        "description": "A tar of adapter_model.safetensors, adapter_config.json and beside.",
        "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
    },
    **documented(404, 422),
}


@dataclass(frozen=True)
class AdapterChanges:
    """changes: by each module's path, in the base's order; null: the adapter leaves it as it is."""

    name: str
    version: str
    changes: Changes


CHANGES: Answers = documented_answer(
    AdapterChanges,
    "The change's size over the weight's own (Frobenius), module by module.",
    {
        "name": "sentiment",
        "version": "4f1c22ab90d3",
        "changes": {"encoder.layer.0.attention.self.query": 0.084, "pooler.dense": None},
    },
) | documented(404, 422, 503)


class ListQuery(BaseModel):
    """Which adapters; without any of these, all."""

    model_config = ConfigDict(extra="forbid")

    limit: int | None = Field(None, ge=1, le=10_000, description="At most so many.")
    after: str = Field("", max_length=63, description="Those behind this name.")
    prefix: str = Field("", max_length=63, description="Names that begin so.")
    q: str = Field("", max_length=63, description="Names that hold this.")
    task: Task | None = None
    head: bool | None = Field(None, description="Whether it has a head.")
    merged: bool | None = None
    resident: bool | None = None
    trial: bool | None = Field(None, description="Whether it has a canary or a shadow.")

    def wants(self, name: str, served: Name, registry: Registry) -> bool:
        """Whether the adapter is one of them, `after` and `limit` aside."""
        states = (
            (self.task, served.report.task),
            (self.head, served.report.has_head),
            (self.merged, name in registry.merged),
            (self.resident, registry.holds(served)),
            (self.trial, served.pointer.trial is not None),
        )
        return self.spells(name) and all(wanted in (None, state) for wanted, state in states)

    def spells(self, name: str) -> bool:
        """Whether it is spelled like one of them."""
        return name.startswith(self.prefix) and self.q in name

    def next_page(self, last: str) -> dict[str, str]:
        """The header that leads to what is behind the last name of a page."""
        given = self.model_dump(mode="json", exclude_defaults=True) | {"after": last}
        spelled = {k: str(v).lower() if isinstance(v, bool) else v for k, v in given.items()}
        return {"Link": f'</adapters?{urlencode(spelled)}>; rel="next"'}


@router.get("", response_class=Response, responses=LIST | documented(422))
@access("any key")
async def list_all(
    query: Annotated[ListQuery, Query()], caller: Called, serving: Served
) -> Response:
    """The adapters that are served, by name: all of them, or a page."""
    registry = serving.runtime.registry
    if not serving.runtime.names.whole:
        return await _page_of_many(query, caller, serving.runtime)
    names = dict(registry.names)  # as it is now: the list is written off the loop

    def listed() -> Response:
        wanted = [n for n in caller.usable(names) if query.wants(n, names[n], registry)]
        behind = wanted[bisect_right(wanted, query.after) :]
        page = behind[: query.limit]
        headers = {"X-Total-Count": str(len(wanted))}
        if len(page) < len(behind):
            headers |= query.next_page(page[-1])
        return json_answer([describe(names[name], registry) for name in page], headers)

    return await asyncio.to_thread(listed)


async def _page_of_many(query: ListQuery, caller: Caller, runtime: Runtime) -> Response:
    """Of a shared store with more names than each server knows: those of a page that are wanted."""
    registry, most = runtime.registry, min(query.limit or WHOLE, WHOLE)
    served, last = await page(
        runtime.fetcher,
        query.after,
        most,
        lambda name: caller.may_use(name) and query.spells(name),
    )
    wanted = [one for one in served if query.wants(one.name, one, registry)]
    headers = query.next_page(last) if last else {}
    return json_answer([describe(one, registry) for one in wanted], headers)


@router.get("/{name}", response_class=Response, responses=ONE, dependencies=NOTHING)
@router.head("/{name}", response_class=Response, responses=ONE, dependencies=NOTHING)
@access("any key")
async def get(request: Request, name: AdapterName, caller: Called, serving: Served) -> Response:
    """One adapter; 304 where If-None-Match holds its version."""
    served = await serving.runtime.names.get(name, caller.at_least(name))
    tag = etag(served.digest)
    if tags_match(request.headers.get("if-none-match", "").replace("W/", ""), served.digest):
        return Response(status_code=304, headers={"ETag": tag})
    return json_answer(describe(served, serving.runtime.registry), {"ETag": tag})


@router.delete(
    "/{name}",
    status_code=204,
    response_class=Response,
    responses=documented(404, 412, 422, 507),
    dependencies=NOTHING,
)
@access("admin key", changes="delete")
async def delete(request: Request, name: AdapterName, caller: Called, serving: Served) -> Response:
    """Stop serving the name; requests in flight finish on their version."""
    revision = await serving.installer.remove(name, precondition(request), caller.change)
    return Response(status_code=204, headers={"X-Revision": str(revision)})


@router.get("/{name}/files", response_class=Response, responses=FILES, dependencies=NOTHING)
@access("admin key")
async def files(name: AdapterName, caller: Called, serving: Served) -> Response:
    """The adapter as the folder that PEFT loads, in a tar; it can be uploaded again as it is."""
    digest, body = await serving.installer.files(name, caller.at_least(name))
    headers = {
        "ETag": etag(digest),
        "Content-Disposition": f'attachment; filename="{name}-{digest[:12]}.tar"',
    }
    return Response(body, 200, headers, "application/x-tar")


@router.get("/{name}/changes", response_class=Response, responses=CHANGES, dependencies=NOTHING)
@access("any key")
async def changes(name: AdapterName, caller: Called, serving: Served) -> Response:
    """How much the adapter changes the weight of each module of the base."""
    version = await serving.runtime.fetcher.ready(
        await serving.runtime.names.get(name, caller.at_least(name))
    )
    base = serving.runtime.engine.encoder.base
    loop = asyncio.get_running_loop()
    by_module = await loop.run_in_executor(serving.verifier, version.changes, base)
    answer = {"name": name, "version": version.digest, "changes": by_module}
    return json_answer(answer, {"ETag": etag(version.digest)})


@router.post(
    "/{name}/merge", response_class=Response, responses=ONE | documented(507), dependencies=NOTHING
)
@access("admin key", changes="merge")
async def merge(name: AdapterName, caller: Called, serving: Served) -> Response:
    """Give the adapter its own merged copy of the layers it targets."""
    started = time.perf_counter()
    return _timed(await merging.merge(serving.installer, name, caller.change), serving, started)


@router.post("/{name}/unmerge", response_class=Response, responses=ONE, dependencies=NOTHING)
@access("admin key", changes="unmerge")
async def unmerge(name: AdapterName, caller: Called, serving: Served) -> Response:
    """Drop the merged copy."""
    started = time.perf_counter()
    return _timed(await merging.unmerge(serving.installer, name, caller.change), serving, started)


def _timed(served: Name, serving: Serving, started: float) -> Response:
    took_ms = round(1000 * (time.perf_counter() - started), 3)
    return json_answer(describe(served, serving.runtime.registry) | {"took_ms": took_ms}, {})
