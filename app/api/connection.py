"""One client's connection, under bounds: what is slow, stalled or endless costs bounded memory.

uvicorn's protocol bounds neither the size nor the time of a request's head, nor the time of its
body.
"""

from __future__ import annotations

import json
import re
import socket
from asyncio import TimerHandle, Transport
from typing import Any, cast

from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 << 10
HEAD_S = 10.0
BODY_S = 30.0  # and as long again for each BODY_BYTES_PER_S * BODY_S that have come
BODY_BYTES_PER_S = 16 << 10
STALLED_S = 30.0  # that a peer may take nothing of its answer
LINGER_S = 3.0  # for what still comes of a body that was refused
MAX_CONNECTIONS = 4096
OFFER = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}
PHRASES[503] = "Service Unavailable"


class _Lenient:
    """A transport that drops what is said to it after its end, as asyncio's do; uvloop's raise."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        """As asyncio's."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def pause_reading(self) -> None:
        """As asyncio's."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """As asyncio's."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedProtocol(HttpToolsProtocol):
    """Closes what does not end in time; a refusal has the shape of every other error."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._in_head = self._in_body = False
        self._bytes = 0  # of the head or the body that is coming
        self._timer: TimerHandle | None = None
        self._stalled: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Of asyncio: a client has connected, unless there are too many."""
        super().connection_made(cast(Transport, _Lenient(transport)))
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(503, "overloaded", f"{MAX_CONNECTIONS} connections are open: try again")
        else:
            self._arm(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio: the connection has ended."""
        self._disarm()
        self._writes_again()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Of asyncio: bytes of a head or a body have come."""
        if self.transport.is_closing():
            return
        super().data_received(data if self._in_body else _without_offer(data))
        if self.transport.is_closing():
            return
        self._bytes += len(data)
        if self._in_head and self._bytes > HEAD_BYTES:
            self._refuse_head()
        elif self._timer is None and (self._in_head or self._in_body or self._idle):
            self._arm(BODY_S if self._in_body else HEAD_S)

    @property
    def _idle(self) -> bool:
        """Between two requests, and uvicorn does not wait for the next one: empty lines have
        come.
        """
        answering = self.cycle is not None and not self.cycle.response_complete
        return not answering and self.timeout_keep_alive_task is None

    def on_message_begin(self) -> None:
        """Of the parser: a head begins."""
        self._in_head, self._bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Of the parser: the head has come; its body may follow."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            self._refuse_head()  # that came all at once
            return
        self._disarm()
        self._in_head, self._in_body, self._bytes = False, True, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Of the parser: a part of a body."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Of the parser: the body has come."""
        if self.transport.is_closing():
            return
        self._disarm()
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Of uvicorn: the answer has been handed over."""
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete and not self.transport.is_closing():
            self._disarm()
            self._arm(LINGER_S)

    def pause_writing(self) -> None:
        """Of asyncio: the client takes its answer too slowly."""
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Of asyncio: the client takes its answer again."""
        self._writes_again()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Of uvicorn, for what is no HTTP."""
        self._refuse(400, "malformed", msg)

    def _watch_reader(self, unsent: int) -> None:
        self._stalled = self.loop.call_later(STALLED_S, self._drop_if_stalled, unsent)

    def _drop_if_stalled(self, before: int) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent < before:
            self._watch_reader(unsent)
        else:
            self.transport.abort()

    def _writes_again(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _arm(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        answered = self.cycle is not None and self.cycle.response_complete
        if self._in_body and not answered:
            waiting_for_us = self.flow.read_paused
            if waiting_for_us or self._bytes >= BODY_BYTES_PER_S * BODY_S:
                self._bytes = 0
                self._arm(BODY_S)
                return
            self._gone()
            self._refuse(408, "too_slow", "the body came too slowly, or not at all")
        elif self._in_head:
            self._refuse(408, "too_slow", f"no whole head came within {HEAD_S:g} s")
        else:
            self.transport.close()

    def _gone(self) -> None:
        """Tell the route that nothing more will come."""
        self.cycle.disconnected = True
        self.cycle.message_event.set()

    def _refuse_head(self) -> None:
        self._refuse(431, "headers_too_large", f"headers over {HEAD_BYTES:,} bytes: send fewer")

    def _refuse(self, status: int, error_type: str, message: str) -> None:
        app = cast(FastAPI, self.config.app)
        app.state.metrics.refusals.labels("unknown", error_type).inc()
        body = json.dumps({"error": message, "error_type": error_type, "request_id": ""}).encode()
        head = (
            f"HTTP/1.1 {status} {PHRASES[status]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def _without_offer(data: bytes) -> bytes:
    """Bytes that begin within a head, without its offer of another protocol, which no server need
    take; the parser would stop there, and the request's body be lost.
    """
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    return OFFER.sub(b"\r\nx-offered:", head) + data[len(head) :]


def listen(host: str, port: int) -> list[socket.socket]:
    """Bound sockets for every address of the host, to be listened on later. Raises OSError.

    The kernel drops peers that are gone, or take nothing of what was sent to them.
    """
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(addresses if port else addresses[:1]):
            # by its protocol's number, else asyncio leaves Nagle on: 40 ms an answer
            sockets.append(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
            _bound(sockets[-1])
            sockets[-1].bind(address)
    except OSError:
        for opened in sockets:
            opened.close()
        raise
    return sockets


def _bound(listening: socket.socket) -> None:
    """What the kernel is to do; its connections inherit it."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 60),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", int(1000 * STALLED_S)),
    ):
        if hasattr(socket, option):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    if listening.family == socket.AF_INET6:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
