"""uvicorn still has each private name that our protocol and our server lean on.

The names are read from our own code. What they do is held by test_connections.py and
test_running.py.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
from typing import Any
from unittest.mock import MagicMock

import pytest
import uvicorn
from uvicorn.server import ServerState

from app.api.connection import BoundedProtocol
from app.api.draining import Server

OWN = ("_in_head", "_in_body", "_bytes", "_timer", "_stalled")
PARTS = ("cycle", "flow")  # of a protocol, whose own names are used too


def used(kind: type) -> list[tuple[str, ...]]:
    """What the class's methods read of itself: ("cycle",), ("cycle", "response_complete"), …"""
    tree = ast.parse(inspect.getsource(kind))
    names = {_path(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    own = {*OWN, *vars(kind)} - set(dir(kind.__mro__[1]))
    paths = {path[:2] if path[0] in PARTS else path[:1] for path in names if path}
    return sorted(path for path in paths if path[0] not in own)


def _path(node: ast.expr) -> tuple[str, ...]:
    """self.a.b -> ("a", "b"); () for what does not begin with self."""
    match node:
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return (name,)
        case ast.Attribute(value=inner, attr=name) if _path(inner):
            return (*_path(inner), name)
    return ()


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    """An app."""


@pytest.fixture(scope="module")
def protocol() -> Any:
    """uvicorn's own protocol with a request in it, without ours above."""

    async def with_request() -> Any:
        config = uvicorn.Config(_nothing, lifespan="off", log_config=None)
        made = BoundedProtocol.__mro__[1](config, ServerState(), {}, asyncio.get_running_loop())
        made.connection_made(MagicMock(spec=asyncio.Transport))
        made.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
        await asyncio.gather(*made.tasks)
        return made

    return asyncio.run(with_request())


@pytest.mark.parametrize("path", used(BoundedProtocol), ids=".".join)
def test_uvicorns_protocol_has_the_name(protocol: Any, path: tuple[str, ...]) -> None:
    value = protocol
    for name in path:
        assert hasattr(value, name), name
        value = getattr(value, name)


@pytest.mark.parametrize("path", used(Server), ids=".".join)
def test_uvicorns_server_has_the_name(path: tuple[str, ...]) -> None:
    server = uvicorn.Server(uvicorn.Config(_nothing, log_config=None))
    ours = ("drain", "delay_s", "at_most_s")
    assert path[0] in ours or hasattr(server, path[0])


def test_the_names_are_found_at_all() -> None:
    assert {("cycle", "response_complete"), ("flow", "read_paused")} <= set(used(BoundedProtocol))
    assert ("server_state",) in used(Server)
