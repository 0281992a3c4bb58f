"""PUT /adapters/{name}."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.adapters.recipe import Options
from app.adapters.sentence import Pooling
from app.adapters.values import Task
from app.api.access import access
from app.api.adapter_object import (
    ADAPTER,
    AdapterName,
    Answers,
    describe,
    installed_answer,
    precondition,
)
from app.api.answer import json_answer
from app.api.caller import Called
from app.api.dialect import documented
from app.api.refusal import Refusal, invalid
from app.api.serving import Served
from app.api.upload_body import opened
from app.catalog.change import Change
from app.catalog.install import How, Installed, Precondition
from app.catalog.open_store import receiving
from app.catalog.registry import Registry

router = APIRouter(prefix="/adapters", tags=["adapters"])


async def _no_merge(request: Request) -> None:
    """Merging by traffic is gone: told before the query is checked, and nothing is done."""
    if "merge" in request.query_params:
        raise Refusal(
            400,
            "malformed",
            "?merge= is gone: nothing is merged by traffic any more; "
            "POST /adapters/{name}/merge and /unmerge do it when you say so",
        )


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

    def how(self, condition: Precondition, change: Change) -> How:
        """What it asks of the installer. change: as the log and the audit will have it."""
        change.action = "stage" if self.stage else "put"
        return How(
            self.options(),
            self.allow_noop,
            self.tokens_per_s,
            self.stage,
            self.dry_run,
            condition,
            change,
            self.path,
        )


FILE = {"type": "string", "format": "binary"}
FILES = {
    "title": "AdapterFiles",
    "type": "object",
    "required": ["adapter_model.safetensors"],
    "properties": {
        "adapter_model.safetensors": FILE,
        "adapter_config.json": FILE,
        "config.json": FILE,
    },
    "additionalProperties": FILE,
}
SOURCE = {
    "title": "AdapterSource",
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
            kind: {"schema": FILE}
            for kind in (
                "application/octet-stream",
                "application/x-tar",
                "application/gzip",
                "application/zip",
            )
        }
        | {
            "multipart/form-data": {"schema": FILES},
            "application/json": {"schema": SOURCE},
        },
    }
}
PUT_ANSWERS: Answers = {
    **ADAPTER,
    201: ADAPTER[200],
    **documented(400, 403, 404, 412, 413, 415, 422, 503, 507),
}


@router.put(
    "/{name}",
    response_class=Response,
    responses=PUT_ANSWERS,
    openapi_extra=UPLOAD,
    dependencies=[Depends(_no_merge)],
)
@access("admin key", changes="put", upload=True)
async def put(
    request: Request,
    name: AdapterName,
    query: Annotated[UploadQuery, Query()],
    caller: Called,
    serving: Served,
) -> Response:
    """Upload an adapter: bare safetensors, multipart, tar or zip of a PEFT folder."""
    how = query.how(precondition(request), caller.change)
    times = Counter(parameter for parameter, _ in request.query_params.multi_items())
    if twice := next((parameter for parameter, count in times.items() if count > 1), None):
        raise invalid(twice, "is given several times")
    async with receiving(serving.installer.store) as folder:
        body = folder / "body"
        with body.open("wb") as file:
            async for chunk in request.stream():
                file.write(chunk)
        upload = await asyncio.to_thread(opened, body, request.headers.get("content-type", ""))
        done = await serving.installer.install_body(name, folder, upload, how)
    return _answer(name, done, query, serving.runtime.registry)


def _answer(name: str, done: Installed, query: UploadQuery, registry: Registry) -> Response:
    report = done.report.to_json()
    if done.name is None:
        absent = {"merged": False, "resident": False, "created": None}
        measured = {"changes": done.changes, "dry_run": True}
        return json_answer({"name": name, **report, **absent, **measured}, {})
    adapter = describe(done.name, registry)
    if query.stage:
        location = {"Location": f"/adapters/{name}/versions"}
        return json_answer({**adapter, **report, "merged": False, "staged": True}, location)
    return installed_answer(done, registry)
