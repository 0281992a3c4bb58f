"""A name's versions: history, rollback, labels, canary, shadow, promote, abort."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from app.adapters.values import ProblemType
from app.api.access import access
from app.api.adapter_object import (
    NOTHING,
    ONE,
    AdapterName,
    describe,
    etag,
    installed_answer,
    precondition,
)
from app.api.answer import json_answer
from app.api.body import JsonBody, body_of, documented_body
from app.api.caller import Called
from app.api.dialect import documented
from app.api.document import documented_answer
from app.api.serving import Served, Serving
from app.catalog.pointer import Entry, Trial, current_index
from app.catalog.relabel import relabel
from app.catalog.trials import begin_trial, end_trial
from app.inference.caller import Caller

router = APIRouter(prefix="/adapters", tags=["adapters"])
MOST_LABELS = 100_000


class RollbackBody(JsonBody):
    """Where to roll back to."""

    model_config = ConfigDict(extra="forbid")

    version: str | None = Field(None, description="12 or more hex digits; none: the one before.")


@dataclass(frozen=True)
class HistoryEntry(Entry):
    """One version that a name has held; current: whether it points there."""

    current: bool = False


HISTORY = documented_answer(list[HistoryEntry], "The versions, oldest first.")
Rollback = Annotated[RollbackBody | None, body_of(RollbackBody, optional=True)]


@router.get(
    "/{name}/versions",
    response_class=Response,
    responses=HISTORY | documented(404, 422),
    dependencies=NOTHING,
)
@access("any key")
async def versions(name: AdapterName, serving: Served) -> Response:
    """What the name has held, oldest first: since when, put there by whom and how."""
    served = await serving.runtime.fetcher.pointer(name)
    current = current_index(served.history, served.version)
    return json_answer(
        [asdict(e) | {"current": i == current} for i, e in enumerate(served.history)], {}
    )


@router.post(
    "/{name}/rollback",
    response_class=Response,
    responses=ONE | documented(400, 413, 415, 507),
    dependencies=NOTHING,
    openapi_extra=documented_body(RollbackBody, optional=True),
)
@access("admin key", changes="rollback")
async def rollback(
    request: Request, name: AdapterName, caller: Called, serving: Served, body: Rollback
) -> Response:
    """Point the name at an earlier version of its own."""
    version = body.version if body else None
    condition = precondition(request)
    served = await serving.installer.rollback(name, version, condition, caller.change)
    return json_answer(describe(served, serving.runtime.registry), {"ETag": etag(served.digest)})


class LabelsBody(JsonBody):
    """A head's labels, in order, and what becomes of its logits."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"labels": ["neg", "pos"]}]}
    )

    labels: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(
        min_length=1,
        max_length=MOST_LABELS,
        fail_fast=True,
        description="As many as the head has.",
    )
    problem_type: ProblemType | None = Field(None, description="None: as it was.")


@router.put(
    "/{name}/labels",
    response_class=Response,
    responses=ONE | documented(412, 413, 415, 503, 507),
    dependencies=NOTHING,
    openapi_extra=documented_body(LabelsBody),
)
@access("admin key", changes="labels")
async def labels(
    request: Request,
    name: AdapterName,
    caller: Called,
    serving: Served,
    body: Annotated[LabelsBody, body_of(LabelsBody, strings=MOST_LABELS)],
) -> Response:
    """Name the labels of an adapter that is there: a new version of the same files."""
    done = await relabel(
        serving.installer,
        name,
        tuple(body.labels),
        body.problem_type,
        precondition(request),
        caller.change,
    )
    return installed_answer(done, serving.runtime.registry)


class CanaryBody(JsonBody):
    """Which version takes part, and in how much."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(description="12 or more hex digits of one that the name holds.")
    percent: float = Field(gt=0, le=100, description="Of the requests for the name.")
    sticky_by: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$",
        description="A header, or client: the same value always meets the same version.",
    )


class ShadowBody(CanaryBody):
    """The same; without a percentage it takes part in every request."""

    percent: float = Field(100, gt=0, le=100, description="Of the requests for the name.")


TRIAL = ONE | documented(400, 409, 413, 415, 503, 507)


@router.post(
    "/{name}/canary",
    response_class=Response,
    responses=TRIAL,
    dependencies=NOTHING,
    openapi_extra=documented_body(CanaryBody),
)
@access("admin key", changes="canary")
async def canary(
    name: AdapterName,
    caller: Called,
    serving: Served,
    body: Annotated[CanaryBody, body_of(CanaryBody)],
) -> Response:
    """Let another version answer a share of the requests."""
    return await _begin(caller, name, serving, "canary", body)


@router.post(
    "/{name}/shadow",
    response_class=Response,
    responses=TRIAL,
    dependencies=NOTHING,
    openapi_extra=documented_body(ShadowBody),
)
@access("admin key", changes="shadow")
async def shadow(
    name: AdapterName,
    caller: Called,
    serving: Served,
    body: Annotated[ShadowBody, body_of(ShadowBody)],
) -> Response:
    """Run another version beside a share of the requests, compare, and do not answer with it."""
    return await _begin(caller, name, serving, "shadow", body)


async def _begin(
    caller: Caller,
    name: str,
    serving: Serving,
    mode: Literal["canary", "shadow"],
    body: CanaryBody,
) -> Response:
    trial = Trial(mode, body.version, body.percent, body.sticky_by)
    served = await begin_trial(serving.installer, name, trial, caller.change)
    return json_answer(describe(served, serving.runtime.registry), {"ETag": etag(served.digest)})


@router.post("/{name}/promote", response_class=Response, responses=TRIAL, dependencies=NOTHING)
@access("admin key", changes="promote")
async def promote(name: AdapterName, caller: Called, serving: Served) -> Response:
    """Make the version on trial the current one."""
    served = await end_trial(serving.installer, name, caller.change, promote=True)
    return json_answer(describe(served, serving.runtime.registry), {"ETag": etag(served.digest)})


@router.post("/{name}/abort", response_class=Response, responses=TRIAL, dependencies=NOTHING)
@access("admin key", changes="abort")
async def abort(name: AdapterName, caller: Called, serving: Served) -> Response:
    """End the trial; the current version stays."""
    served = await end_trial(serving.installer, name, caller.change, promote=False)
    return json_answer(describe(served, serving.runtime.registry), {"ETag": etag(served.digest)})
