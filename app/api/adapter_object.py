"""What the adapter routes have in common: names, the adapter object, entity tags, preconditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Response

from app.adapters.report import Report
from app.api.answer import json_answer
from app.api.dialect import documented
from app.api.document import documented_answer
from app.api.refusal import invalid
from app.catalog.install import Installed, PreconditionFailed
from app.catalog.pointer import Trial, valid_name
from app.catalog.registry import Name, Registry


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
        refusal = invalid(name, "is no parameter of this route")
        refusal.for_log = "the query has a parameter that is none of this route"
        raise refusal


NOTHING = [Depends(_no_parameters)]
AdapterName = Annotated[str, Depends(_name)]
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
Answers = dict[int | str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class AdapterObject(Report):
    """docs/api.md's adapter object: its version's report, and what is the name's own."""

    name: str
    tokens_per_s: float | None
    trial: Trial | None
    merged: bool
    resident: bool
    revision: int
    created: str


DESCRIBED = "The adapter, as it was matched and measured against the base."
ADAPTER = documented_answer(AdapterObject, DESCRIBED, REPORT_EXAMPLE)
ONE: Answers = ADAPTER | documented(404, 422)
LIST: Answers = documented() | documented_answer(
    list[AdapterObject], "The adapters, by name.", [REPORT_EXAMPLE]
)


def describe(served: Name, registry: Registry) -> dict[str, Any]:
    """API.md's adapter object."""
    return {
        "name": served.name,
        **served.report.to_json(),
        "tokens_per_s": served.pointer.tokens_per_s,
        "trial": asdict(served.pointer.trial) if served.pointer.trial else None,
        "merged": served.name in registry.merged,
        "resident": registry.holds(served),
        "revision": served.pointer.revision,
        "created": served.created,
    }


def installed_answer(done: Installed, registry: Registry) -> Response:
    """What has been put under a name, with what that change's answer alone says."""
    if done.name is None:  # pragma: no cover - only a dry run has none
        raise RuntimeError("an adapter was put, and no name has it")
    adapter = describe(done.name, registry) | {"warnings": done.report.warnings}
    if done.unchanged:
        adapter["unchanged"] = True
    headers = {"ETag": etag(done.name.digest), "Location": f"/adapters/{done.name.name}"}
    return json_answer(adapter, headers, 201 if done.created else 200)


def etag(digest: str) -> str:
    """The version as an entity tag (RFC 9110, 8.8.3)."""
    return f'"{digest}"'


def tags_match(header: str | None, digest: str | None) -> bool:
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
        if if_match is not None and not tags_match(if_match, current):
            now = f"the current version is {current}" if current else "there is no such adapter"
            raise PreconditionFailed(f"If-Match does not hold: {now}")
        if tags_match((if_none_match or "").replace("W/", ""), current):
            raise PreconditionFailed(f"If-None-Match does not hold: version {current} is there")

    return check
