"""POST /adapters/{name}/compose."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field, JsonValue, model_validator

from app.adapters.combine import Combination, SignMethod, Way
from app.api.access import access
from app.api.adapter_object import (
    ADAPTER,
    NOTHING,
    AdapterName,
    Answers,
    installed_answer,
    precondition,
)
from app.api.body import JsonBody, body_of, documented_body
from app.api.caller import Called
from app.api.dialect import documented
from app.api.serving import Served
from app.catalog.composing import compose as compose_adapters
from app.catalog.install import How
from app.catalog.terms import LARGEST, MOST_TERMS, Spelled
from app.inference.errors import Forbidden

router = APIRouter(prefix="/adapters", tags=["adapters"])
NAME = r"^[a-z0-9][a-z0-9._-]{0,62}(@[0-9A-Fa-f]{12,64})?$"
EXAMPLE: dict[str, JsonValue] = {"adapters": ["banking77", "clinc150"], "weights": [0.7, 0.3]}
COMPOSED: Answers = {
    **ADAPTER,
    201: ADAPTER[200],
    **documented(400, 404, 412, 413, 415, 422, 503, 507),
}


class ComposeBody(JsonBody):
    """Which adapters, and how. The members are those of PEFT's add_weighted_adapter."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [EXAMPLE]}
    )

    adapters: list[Annotated[str, Field(pattern=NAME)]] = Field(
        min_length=1, max_length=MOST_TERMS, description="Each a name or name@version."
    )
    weights: list[Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]] | None = (
        Field(None, max_length=MOST_TERMS, description="One for each adapter; none: each counts 1.")
    )
    combination_type: Combination = Field(
        "linear",
        description="linear: the weighted sum itself, which `?adapter=a:0.7+b:0.3` serves.",
    )
    svd_rank: int | None = Field(
        None, ge=1, le=1024, description="Of what is kept; none: the largest of theirs."
    )
    density: float | None = Field(
        None, gt=0, le=1, description="The share of each change that ties, dare and prune keep."
    )
    majority_sign_method: SignMethod = "total"
    seed: int = Field(0, ge=0, lt=2**63, description="Of what dare drops.")

    @model_validator(mode="after")
    def _fits(self) -> ComposeBody:
        if self.weights is not None and len(self.weights) != len(self.adapters):
            raise ValueError(
                f"{len(self.adapters)} adapters and {len(self.weights)} weights: one for each"
            )
        if self.combination_type == "linear" and self.svd_rank is not None:
            raise ValueError("linear keeps every rank: leave svd_rank out, or say svd")
        if self.combination_type in ("linear", "svd") and self.density is not None:
            raise ValueError(f"{self.combination_type} keeps all: leave density out")
        return self

    def terms(self) -> list[Spelled]:
        """Each adapter with its weight."""
        weights = self.weights or [1.0] * len(self.adapters)
        return [Spelled(name, w) for name, w in zip(self.adapters, weights, strict=True)]

    def way(self) -> Way:
        """How they are combined."""
        return Way(
            self.combination_type,
            self.svd_rank,
            self.density,
            self.majority_sign_method,
            self.seed,
        )


@router.post(
    "/{name}/compose",
    response_class=Response,
    responses=COMPOSED,
    dependencies=NOTHING,
    openapi_extra=documented_body(ComposeBody),
)
@access("admin key", changes="compose")
async def compose(
    request: Request,
    name: AdapterName,
    caller: Called,
    serving: Served,
    body: Annotated[ComposeBody, body_of(ComposeBody)],
) -> Response:
    """Compose adapters into one that is kept under the name."""
    for adapter in body.adapters:
        if not caller.may_use(adapter.partition("@")[0]):
            raise Forbidden(adapter.partition("@")[0])
    # Whether it changes anything is asked of the sum, with words for who composed it.
    how = How(allow_noop=True, precondition=precondition(request), change=caller.change)
    done = await compose_adapters(
        serving.installer, name, body.terms(), body.way(), how, caller.at_least
    )
    return installed_answer(done, serving.runtime.registry)
