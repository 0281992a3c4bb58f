"""Sequences and requests for the tests of this room: of given lengths, through made-up versions."""

from __future__ import annotations

from app.adapters.values import Adapter
from app.engine.admission import Asker
from app.engine.request import Request
from app.model.delta import BASE_LAYERS
from app.model.sequence import Sequence, Want
from app.model.version import Version

WANT = Want("embedding")
BASE = Version("base", Adapter({}, "base"), BASE_LAYERS)


def sequence(*ids: int, version: Version = BASE) -> Sequence:
    return Sequence(list(ids), [0] * len(ids), WANT, version)


def sized(size: int, adapter: str = "base") -> Sequence:
    """`size` tokens through a version of that digest."""
    return sequence(*[1] * size, version=Version(adapter, BASE.adapter, BASE_LAYERS))


def request_of(sequences: list[Sequence], asker: Asker = Asker()) -> Request:  # noqa: B008
    """As Engine.run makes it."""
    request = Request(lambda: None, asker, len(sequences))
    for index, each in enumerate(sequences):
        each.request, each.index = request, index
    return request
