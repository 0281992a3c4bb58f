"""Which adapter a request asks for: by its query, a header, the path's prefix, or its body's
`model`. Two that disagree are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.routing import BaseRoute

from app.api.access import access_of
from app.api.refusal import invalid
from app.inference.choose import BASE, Selection, alike, names_in, with_plus
from app.inference.errors import Ambiguous
from app.inference.runtime import Runtime

PREFIX = "/a/{adapter}"  # for clients that let one set nothing but a base URL
HEADERS = ("x-adapter", "x-amzn-sagemaker-adapter-identifier")


class AdapterQuery(BaseModel):
    """The query of a call; a misspelled parameter is refused, never ignored."""

    model_config = ConfigDict(extra="forbid")

    adapter: list[str] = Field(
        default_factory=list,
        description="An adapter, `name@version`, or `base`; several: every input through each. "
        "None: the plain base.",
        examples=[["sentiment"]],
    )


ChosenByQuery = Annotated[AdapterQuery, Query()]


def header_adapter(headers: Headers) -> str | None:
    """The adapter that a header names."""
    return next((value for name in HEADERS if (value := headers.get(name))), None)


def selection_of(request: Request, adapters: list[str]) -> Selection:
    """adapters: the query's. Raises Ambiguous where query, header and prefix disagree."""
    prefix, header = request.path_params.get("adapter"), header_adapter(request.headers)
    single = ((name,) for name in (prefix, header) if name)
    chosen: list[tuple[str, ...]] = [*([tuple(adapters)] if adapters else []), *single]
    if len({tuple(map(with_plus, names)) for names in chosen}) > 1:
        spelled = ", ".join(sorted({name for names in chosen for name in names}))
        raise Ambiguous(
            f"?adapter=, X-Adapter and the path name different adapters: {spelled:.200}"
        )
    return Selection(chosen[0] if chosen else ())


async def _selected(request: Request, query: ChosenByQuery) -> Selection:
    return selection_of(request, query.adapter)


def selection_of_one(request: Request, adapters: list[str]) -> Selection:
    """As selection_of. Raises Refusal for several."""
    if len(adapters) > 1:
        raise invalid("adapter", "is given several times; this route takes one")
    return selection_of(request, adapters)


async def _selected_one(request: Request, query: ChosenByQuery) -> Selection:
    return selection_of_one(request, query.adapter)


Selected = Annotated[Selection, Depends(_selected)]
SelectedOne = Annotated[Selection, Depends(_selected_one)]


def with_model(runtime: Runtime, selection: Selection, model: str | None) -> Selection:
    """The selection, or else the body's `model`: the base's id, an adapter, or base-id:adapter.

    Beside a selection `model` may be anything that is no other adapter's name: clients have a
    default for it. Raises Ambiguous.
    """
    if not selection.adapters:
        return Selection([] if model is None else [model])
    spelled = model or BASE
    others = {alike(runtime, other) for other in selection.adapters}
    known = all(name in runtime.registry.names for name in names_in(runtime, spelled))
    if known and alike(runtime, spelled) not in others:
        raise Ambiguous(
            f"model names {spelled:.80}, and the path, a header or ?adapter= "
            f"{selection.adapters[0]:.80}"
        )
    return selection


def below_prefix(routes: list[BaseRoute]) -> Iterator[APIRoute]:
    """Each route that needs no more than any key, once more below the prefix."""
    for route in routes:
        if not isinstance(route, APIRoute) or access_of(route).needs not in ("nothing", "any key"):
            continue
        for path in (PREFIX + route.path, *([PREFIX] if route.path == "/" else [])):
            yield APIRoute(
                path,
                route.endpoint,
                methods=route.methods,
                response_class=route.response_class,
                include_in_schema=False,
            )
