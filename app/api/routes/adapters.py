"""PUT, GET, HEAD, DELETE /adapters/{name}; its files; merge and unmerge."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.adapters.recipe import Options
from app.adapters.sentence import Pooling
from app.adapters.values import Task
from app.api.access import access
from app.api.answer import json_answer
from app.api.caller import Called
from app.api.dialect import documented
from app.api.refusal import Refusal, invalid
from app.api.serving import Served, Serving
from app.api.upload_body import opened
from app.catalog.install import How, PreconditionFailed
from app.catalog.pointer import valid_name
from app.catalog.registry import Name, Registry

router = APIRouter(prefix="/adapters", tags=["adapters"])


async def _name(name: str) -> str:
    if not valid_name(name):
        raise invalid(
            "name",
            f"{name!r} is no adapter name: 1 to 63 of a-z 0-9 . _ -, first a letter or digit; "
            "base is reserved",
        )
    return name


async def _no_parameters(request: Request) -> None:
    """Of a route that takes none: one that somebody believes in is refused, and nothing is done."""
    for name in request.query_params:
        raise invalid(name, "is no parameter of this route")


async def _no_merge(request: Request) -> None:
    """Merging by traffic is gone: told before the query is checked, and nothing is done."""
    if "merge" in request.query_params:
        raise Refusal(
            400,
            "malformed",
            "?merge= is gone: nothing is merged by traffic any more; "
            "POST /adapters/{name}/merge and /unmerge do it when you say so",
        )


NOTHING = [Depends(_no_parameters)]
AdapterName = Annotated[str, Depends(_name)]


class UploadQuery(BaseModel):
    """What an uploader may say beside the file; a misspelled parameter is refused."""

    model_config = ConfigDict(extra="forbid")

    alpha: float | None = Field(None, gt=0, allow_inf_nan=False, description="LoRA's alpha.")
    scale: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="What B A is multiplied by, in place of alpha / r.",
    )
    layout: Literal["peft", "tutorial", "tutorial-swapped"] | None = None
    labels: str | None = Field(None, description="neg,pos: the head's labels in order.")
    pooling: Pooling | None = None
    normalize: bool | None = None
    task: Task | None = None
    problem_type: (
        Literal["single_label_classification", "multi_label_classification", "regression"] | None
    ) = Field(None, description="Which activation the head's scores get.")
    path: str | None = Field(
        None, max_length=1000, description="Which folder of the upload; none: the one with weights."
    )
    tokens_per_s: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="What all clients together may ask of it; 0: any amount; none: as before.",
    )
    stage: bool = Field(
        False, description="Hold the version beside the current one, for a canary or a shadow."
    )
    dry_run: bool = Field(False, description="Report and change nothing.")
    allow_noop: bool = Field(False, description="Take an adapter that changes nothing.")

    def options(self) -> Options:
        """What it says about the adapter itself."""
        labels = None if self.labels is None else tuple(self.labels.split(","))
        return Options(
            self.alpha,
            self.layout,
            labels,
            self.pooling,
            self.normalize,
            self.task,
            self.problem_type,
            self.scale,
        )


REPORT_EXAMPLE = {
    "name": "sentiment",
    "version": "4f1c22ab90d3",
    "task": "classify",
    "labels": ["negative", "positive"],
    "rank": 8,
    "scale": 2.0,
    "targets": {"query": 6, "value": 6},
    "merged": False,
}
REPORT: dict[str, Any] = {
    "description": "The adapter, as it was matched and measured against the base.",
    "content": {"application/json": {"schema": {"type": "object"}, "example": REPORT_EXAMPLE}},
}
SOURCE = {
    "type": "object",
    "required": ["source"],
    "properties": {
        "source": {"type": "string", "examples": ["/models/sentiment", "hf:org/repo@main"]}
    },
    "additionalProperties": False,
}
UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in (
                "application/octet-stream",
                "multipart/form-data",
                "application/x-tar",
                "application/gzip",
                "application/zip",
            )
        }
        | {"application/json": {"schema": SOURCE}},
    }
}
Answers = dict[int | str, dict[str, Any]]
PUT_ANSWERS: Answers = {
    200: REPORT,
    201: REPORT,
    **documented(400, 403, 404, 412, 413, 415, 422, 503, 507),
}
ONE: Answers = {200: REPORT, **documented(404, 422)}
LIST: Answers = {
    **documented(),
    200: {
        "description": "Every adapter.",
        "content": {"application/json": {"schema": {"type": "array"}}},
    },
}


FILES: Answers = {
    200: {
        "description": "A tar of adapter_model.safetensors, adapter_config.json and beside.",
        "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
    },
    **documented(404, 422),
}


def describe(found: Name, registry: Registry) -> dict[str, Any]:
    """API.md's adapter object."""
    return {
        "name": found.name,
        **found.report.to_json(),
        "tokens_per_s": found.pointer.tokens_per_s,
        "trial": asdict(found.pointer.trial) if found.pointer.trial else None,
        "merged": found.name in registry.merged,
        "resident": found.name in registry.merged or found.digest in registry.residents,
        "created": found.created,
    }


@router.put(
    "/{name}",
    response_class=Response,
    responses=PUT_ANSWERS,
    openapi_extra=UPLOAD,
    dependencies=[Depends(_no_merge)],
)
@access("admin key", upload=True)
async def put(
    request: Request,
    name: AdapterName,
    query: Annotated[UploadQuery, Query()],
    caller: Called,
    serving: Served,
) -> Response:
    """Upload an adapter: bare safetensors, multipart, tar or zip of a PEFT folder."""
    installer = serving.installer
    asked = precondition(request)
    given = Counter(parameter for parameter, _ in request.query_params.multi_items())
    if twice := next((parameter for parameter, times in given.items() if times > 1), None):
        raise invalid(twice, "is given several times")
    with installer.store.receiving() as folder:
        body = folder / "body"
        with body.open("wb") as file:
            async for chunk in request.stream():
                file.write(chunk)
        upload = await asyncio.to_thread(opened, body, request.headers.get("content-type", ""))
        done = await installer.install_body(
            name,
            folder,
            upload,
            How(
                query.options(),
                query.allow_noop,
                query.tokens_per_s,
                query.stage,
                query.dry_run,
                asked,
                caller.name,
                query.path,
            ),
        )
    if done.name is None:
        dry = {
            "name": name,
            **done.report.to_json(),
            "merged": False,
            "resident": False,
            "created": None,
        }
        return json_answer({**dry, "dry_run": True}, {})
    if query.stage:
        held = {
            **describe(done.name, serving.runtime.registry),
            **done.report.to_json(),
            "merged": False,
        }
        return json_answer({**held, "staged": True}, {"Location": f"/adapters/{name}/versions"})
    headers = {"ETag": etag(done.name.digest), "Location": f"/adapters/{name}"}
    answer = describe(done.name, serving.runtime.registry) | {"warnings": done.report.warnings}
    answer |= {"unchanged": True} if done.unchanged else {}
    return json_answer(answer, headers, 201 if done.created else 200)


@router.get("", response_class=Response, responses=LIST, dependencies=NOTHING)
@access("any key")
async def list_all(caller: Called, serving: Served) -> Response:
    """Every adapter that is served."""
    names = dict(
        serving.runtime.registry.names
    )  # what is served now: the list is written off the loop

    def listed() -> Response:
        shown = caller.usable(names)
        return json_answer([describe(names[name], serving.runtime.registry) for name in shown], {})

    return await asyncio.to_thread(listed)


@router.get("/{name}", response_class=Response, responses=ONE, dependencies=NOTHING)
@router.head("/{name}", response_class=Response, responses=ONE, dependencies=NOTHING)
@access("any key")
async def get(request: Request, name: AdapterName, serving: Served) -> Response:
    """One adapter; 304 where If-None-Match holds its version."""
    found = serving.runtime.registry.get(name)
    tag = etag(found.digest)
    if _matches(request.headers.get("if-none-match", "").replace("W/", ""), found.digest):
        return Response(status_code=304, headers={"ETag": tag})
    return json_answer(describe(found, serving.runtime.registry), {"ETag": tag})


@router.delete(
    "/{name}",
    status_code=204,
    response_class=Response,
    responses=documented(404, 412, 422, 507),
    dependencies=NOTHING,
)
@access("admin key")
async def delete(request: Request, name: AdapterName, serving: Served) -> Response:
    """Stop serving the name; requests in flight finish on their version."""
    await serving.installer.remove(name, precondition(request))
    return Response(status_code=204)


@router.get("/{name}/files", response_class=Response, responses=FILES, dependencies=NOTHING)
@access("admin key")
async def files(name: AdapterName, serving: Served) -> Response:
    """The adapter as the folder that PEFT loads, in a tar; it can be uploaded again as it is."""
    digest, body = await serving.installer.files(name)
    headers = {
        "ETag": etag(digest),
        "Content-Disposition": f'attachment; filename="{name}-{digest[:12]}.tar"',
    }
    return Response(body, 200, headers, "application/x-tar")


@router.post(
    "/{name}/merge", response_class=Response, responses=ONE | documented(507), dependencies=NOTHING
)
@access("admin key")
async def merge(name: AdapterName, serving: Served) -> Response:
    """Give the adapter its own merged copy of the layers it targets."""
    started = time.perf_counter()
    return _timed(await serving.installer.merge(name), serving, started)


@router.post("/{name}/unmerge", response_class=Response, responses=ONE, dependencies=NOTHING)
@access("admin key")
async def unmerge(name: AdapterName, serving: Served) -> Response:
    """Drop the merged copy."""
    started = time.perf_counter()
    return _timed(await serving.installer.unmerge(name), serving, started)


def _timed(found: Name, serving: Serving, started: float) -> Response:
    took_ms = round(1000 * (time.perf_counter() - started), 3)
    return json_answer(describe(found, serving.runtime.registry) | {"took_ms": took_ms}, {})


def etag(digest: str) -> str:
    return f'"{digest}"'


def _matches(header: str | None, digest: str | None) -> bool:
    """Whether a list of entity tags holds the version (RFC 9110, 13.1)."""
    if header is None or digest is None:
        return False
    tags = [tag.strip() for tag in header.split(",")]
    return "*" in tags or etag(digest) in tags


def precondition(request: Request) -> Callable[[str | None], None]:
    """What the request's headers ask of the current version; None: there is none."""
    if_match, if_none_match = (
        ",".join(lines) if (lines := request.headers.getlist(field)) else None
        for field in ("if-match", "if-none-match")
    )

    def check(current: str | None) -> None:
        if if_match is not None and not _matches(if_match, current):
            now = f"the current version is {current}" if current else "there is no such adapter"
            raise PreconditionFailed(f"If-Match does not hold: {now}")
        if _matches((if_none_match or "").replace("W/", ""), current):
            raise PreconditionFailed(f"If-None-Match does not hold: version {current} is there")

    return check
