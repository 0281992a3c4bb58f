"""A request's JSON body -> a checked model, under bounds and in nobody's way.

FastAPI would parse and check it on the event loop, and tell every wrong item of a list.
"""

from __future__ import annotations

import asyncio
import codecs
import difflib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, PrivateAttr, ValidationError, model_validator

from app.api.dialect import Dialect
from app.api.json_text import Most, TooMany, parse_json
from app.api.refusal import MAX_FAULTS, Refusal, validation_refusal
from app.api.serving import Serving

M = TypeVar("M", bound="JsonBody")
ON_LOOP_BYTES = 16 << 10  # parsed in less time than a thread takes to begin
STRINGS_PER_INPUT = 4  # a pair, its adapter, and room
OTHERS = 256  # strings and lists beside the inputs


class JsonBody(BaseModel):
    """Of every route that takes JSON."""

    _shortened: bool = PrivateAttr(default=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, members: Any) -> Any:
        """A member that is null is one that was left out: many clients send all they know."""
        if not isinstance(members, dict):
            return members
        return {name: value for name, value in members.items() if value is not None}

    @property
    def shortened(self) -> bool:
        """Whether a very long string of it lacks its middle."""
        return self._shortened


def body_of(model: type[M], *, optional: bool = False, strings: int = 0) -> Any:
    """A route's dependency that gives the body as `model`; None for an empty one that is optional.

    strings: how many it may hold beyond those of any other body.
    """

    async def read(request: Request) -> M | None:
        return await _read(request, lambda _: model, optional=optional, strings=strings)

    return Depends(read)


@dataclass(frozen=True)
class Spoken:
    """One of the bodies that a path takes: member tells it from the others; dialect: its errors."""

    member: str
    model: type[JsonBody]
    dialect: Dialect


def body_by(*spoken: Spoken) -> Any:
    """A dependency for a path that two families of clients share: the body as the model of the
    first whose member it has, or else of the last.
    """

    async def read(request: Request) -> JsonBody | None:
        def pick(value: Any) -> type[JsonBody]:
            has = value if isinstance(value, dict) else {}
            chosen = next((one for one in spoken if one.member in has), spoken[-1])
            request.state.dialect = chosen.dialect
            return chosen.model

        return await _read(request, pick, optional=False, strings=0)

    return Depends(read)


def documented_body(*models: type[BaseModel], optional: bool = False) -> dict[str, Any]:
    """FastAPI's `openapi_extra` for a route with such a body, or one of several."""
    schemas = [model.model_json_schema() for model in models]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": not optional, "content": content}}


async def receive_body(request: Request) -> tuple[bytearray, bytes]:
    """The whole body, and its digest, which stays when the body goes. Raises what the middlewares
    raise.
    """
    raw, digest = bytearray(), hashlib.blake2b(digest_size=16)
    async for chunk in request.stream():
        raw += chunk
        digest.update(chunk)
    return raw, digest.digest()


async def _read(
    request: Request, pick: Callable[[Any], type[M]], *, optional: bool, strings: int
) -> M | None:
    """pick: the parsed body -> its model. Raises Refusal (400, 413, 415, 422)."""
    raw, request.state.body_digest = await receive_body(request)
    if not raw and optional:
        return None
    _refuse_other_media(request, empty=not raw)
    serving: Serving = request.app.state.serving
    runtime = serving.runtime
    most = most_of(runtime.max_inputs, runtime.engine.encoder.max_length, strings)
    if len(raw) <= ON_LOOP_BYTES:
        return checked_json(raw, pick, most)
    return await asyncio.to_thread(checked_json, raw, pick, most)


def most_of(inputs: int, max_length: int, strings: int = 0) -> Most:
    """What a body of so many inputs may hold: a list of token ids may be twice what is read of
    it.
    """
    return Most(
        strings=STRINGS_PER_INPUT * inputs + OTHERS + strings,
        scalars=2 * inputs * max_length + OTHERS,
        lists=inputs + OTHERS,
    )


def _refuse_other_media(request: Request, *, empty: bool) -> None:
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if empty:
        raise Refusal(400, "malformed", "the body is empty: send JSON")
    if media != "application/json" and not media.endswith("+json"):
        hint = f"not {media!r:.80}" if media else "and say so"
        raise Refusal(
            415,
            "unsupported_media_type",
            f"send the body as JSON, {hint}: -H 'Content-Type: application/json'",
        )


def checked_json(raw: bytearray, pick: Callable[[Any], type[M]], most: Most) -> M:
    """A JSON text as the model that `pick` names for its value. Blocks. Raises Refusal."""
    if raw.startswith(codecs.BOM_UTF8):
        del raw[: len(codecs.BOM_UTF8)]
    try:
        parsed = parse_json(raw, most)
    except TooMany as error:
        raise Refusal(
            413, "too_many_inputs", f"the body is more than one request may hold: {error}"
        ) from None
    except ValueError as error:
        if "hex escape" in str(error):  # JSON can spell what no text can hold
            reason = f"the body holds half of a surrogate pair, which is no character: {error}"
            raise Refusal(422, "validation", reason) from None
        raise Refusal(400, "malformed", f"the body is not JSON: {error}") from None
    return checked(pick(parsed.value), parsed.value, shortened=parsed.shortened)


def checked(model: type[M], value: Any, *, shortened: bool) -> M:
    """The parsed value as `model`. Raises Refusal (422)."""
    try:
        body = model.model_validate(value)
        body._shortened = shortened
        return body
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise validation_refusal(
            [_with_hint(fault, model) for fault in faults[:MAX_FAULTS]], error.error_count()
        ) from None


def _names(model: type[BaseModel]) -> list[str]:
    """Its members, those first that must be there."""
    return sorted(model.model_fields, key=lambda name: not model.model_fields[name].is_required())


def _with_hint(fault: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """A member that the body does not have, with the one that was meant."""
    if fault["type"] != "extra_forbidden":
        return dict(fault)
    name = str(fault["loc"][-1])
    near = difflib.get_close_matches(name[:64], model.model_fields, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(_names(model))}"
    where = " (or ?adapter= in the query)" if name == "adapter" and near else ""
    return {**fault, "msg": f"is no member of this body{hint}{where}"}
