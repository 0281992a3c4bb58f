"""Slow, stalled, endless and hostile connections: each is closed in time, and nobody else waits."""

from __future__ import annotations

import json
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.api import connection
from tests.live import LiveServer, live_server

BODY = b'{"inputs": "the good film"}'
HEAD = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(scope="module")
def server(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """With short times."""
    patch = pytest.MonkeyPatch()
    for name in ("HEAD_S", "BODY_S", "STALLED_S", "LINGER_S"):
        patch.setattr(connection, name, 0.5)
    patch.setattr(connection, "MAX_CONNECTIONS", 150)
    folder = tmp_path_factory.mktemp("connections")
    running = live_server(
        model=str(tiny_bert),
        store=folder / "store",
        adapters_dir=folder / "none",
        max_body_bytes=2 << 20,
    )
    yield running
    running.stop()
    patch.undo()


Connect = Callable[[], socket.socket]


@pytest.fixture
def connect(server: LiveServer) -> Iterator[Connect]:
    """connect(): a raw connection with a small window, closed after the test."""
    host, port = server.url.removeprefix("http://").split(":")
    opened: list[socket.socket] = []

    def new() -> socket.socket:
        opened.append(socket.socket())
        opened[-1].settimeout(10)
        opened[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened[-1].connect((host, int(port)))
        return opened[-1]

    yield new
    for one in opened:
        one.close()


def answer(opened: socket.socket) -> bytes:
    """All that comes until the server closes; a reset counts as that."""
    found = b""
    try:
        while piece := opened.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def error_of(found: bytes) -> tuple[int, str]:
    head, _, body = found.partition(b"\r\n\r\n")
    told = json.loads(body)
    return int(head.split()[1]), told.get("code", told["error_type"])


def still_serves(server: LiveServer) -> None:
    started = time.perf_counter()
    got = server.client.post("/embed", content=BODY, headers={"Content-Type": "application/json"})
    assert got.status_code == 200
    assert time.perf_counter() - started < 5


def test_whoever_says_nothing_or_half_a_head_is_let_go(
    server: LiveServer, connect: Connect
) -> None:
    silent, half = connect(), connect()
    half.sendall(HEAD)
    assert answer(silent) == b""
    assert error_of(answer(half)) == (408, "too_slow")


def test_a_head_that_trickles_is_let_go(server: LiveServer, connect: Connect) -> None:
    opened = connect()
    began = time.monotonic()
    with pytest.raises(OSError):
        for _ in range(100):
            opened.sendall(b"G")
            time.sleep(0.1)
    assert time.monotonic() - began < 5


def test_empty_lines_keep_no_connection_open(server: LiveServer, connect: Connect) -> None:
    opened = connect()
    began = time.monotonic()
    with pytest.raises(OSError):
        for _ in range(100):
            opened.sendall(b"\r\n")
            time.sleep(0.1)
    assert time.monotonic() - began < 5


def test_a_huge_head_is_refused(server: LiveServer, connect: Connect) -> None:
    opened = connect()
    opened.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
    try:
        for i in range(4000):
            opened.sendall(b"X-%d: %s\r\n" % (i, b"y" * 1000))
    except OSError:
        pass
    found = answer(opened)
    assert not found or error_of(found) == (431, "headers_too_large")
    still_serves(server)


def test_one_huge_header_is_refused(server: LiveServer, connect: Connect) -> None:
    opened = connect()
    opened.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000)
    assert error_of(answer(opened)) == (431, "headers_too_large")


def test_a_huge_head_in_one_piece_is_refused(server: LiveServer, connect: Connect) -> None:
    opened = connect()
    opened.sendall(
        HEAD + b"Content-Length: %d\r\n" % len(BODY) + b"X: " + b"y" * 70_000 + b"\r\n\r\n" + BODY
    )
    assert error_of(answer(opened)) == (431, "headers_too_large")
    still_serves(server)


def test_an_offer_of_another_protocol_is_not_taken_and_costs_no_body(
    server: LiveServer, connect: Connect
) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    body = b'{"inputs":\r\n "upgrade: the good film"}'
    opened = connect()
    opened.sendall(HEAD + offer + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    opened.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    found = answer(opened)
    assert found.startswith(b"HTTP/1.1 200") and found.count(b"HTTP/1.1 200") == 2


def test_what_is_no_http_gets_the_errors_shape(server: LiveServer, connect: Connect) -> None:
    opened = connect()
    opened.sendall(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
    assert error_of(answer(opened)) == (400, "malformed")


def test_a_body_that_stops_is_refused_and_its_request_ends(
    server: LiveServer, connect: Connect
) -> None:
    opened = connect()
    opened.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + BODY)
    assert error_of(answer(opened)) == (408, "too_slow")
    assert server.app.state.drain.in_flight == 0


def test_a_body_without_end_is_refused_and_closed(server: LiveServer, connect: Connect) -> None:
    opened = connect()
    opened.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    sent = 0
    with pytest.raises(OSError):
        while sent < 400 << 20:
            opened.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            sent += 0x10000
            time.sleep(0.001)
    assert server.app.state.drain.in_flight == 0
    still_serves(server)


def test_a_body_that_says_how_far_too_large_it_is_is_refused_before_it_comes(
    server: LiveServer, connect: Connect
) -> None:
    opened = connect()
    opened.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (3 << 20))
    assert error_of(answer(opened)) == (413, "payload_too_large")


def test_who_takes_nothing_of_the_answer_is_dropped(server: LiveServer, connect: Connect) -> None:
    body = json.dumps({"inputs": ["good film"] * 1000}).encode()
    opened = connect()
    head = HEAD + b"Content-Length: %d\r\n\r\n" % len(body)
    try:
        for _ in range(50):  # pipelined
            opened.sendall(head + body)
    except OSError:
        pass
    for _ in range(100):
        if server.app.state.drain.in_flight == 0:
            break
        time.sleep(0.1)
    assert server.app.state.drain.in_flight == 0
    still_serves(server)


def test_hundreds_of_stalled_connections_keep_nobody_else_out_for_long(
    server: LiveServer, connect: Connect
) -> None:
    stalled = [connect() for _ in range(140)]
    for opened in stalled:
        opened.sendall(HEAD)
    still_serves(server)
    more = [connect() for _ in range(60)]
    refused = [answer(opened) for opened in more]
    assert any(found and error_of(found) == (503, "overloaded") for found in refused)
    assert all(error_of(answer(opened)) == (408, "too_slow") for opened in stalled)
    still_serves(server)


def test_pipelining_keep_alive_and_expect_work_as_before(
    server: LiveServer, connect: Connect
) -> None:
    opened = connect()
    opened.sendall(WHOLE + WHOLE)
    time.sleep(1)
    opened.sendall(WHOLE.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n"))
    assert answer(opened).count(b"HTTP/1.1 200 OK") == 3
    opened = connect()
    opened.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
    assert opened.recv(100).startswith(b"HTTP/1.1 100 Continue")
    opened.sendall(BODY)
    assert b"200 OK" in opened.recv(1000)


def test_a_slow_body_that_gets_on_is_read(server: LiveServer, connect: Connect) -> None:
    """Faster than BODY_BYTES_PER_S, over several times BODY_S."""
    body = json.dumps({"inputs": "good " * 20_000}).encode()
    opened = connect()
    head = HEAD.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n")
    opened.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
    step = len(body) // 8
    for start in range(0, len(body), step):
        opened.sendall(body[start : start + step])
        time.sleep(0.2)
    assert b"200 OK" in answer(opened)


def test_a_slow_reader_of_a_large_answer_gets_all_of_it(
    server: LiveServer, connect: Connect
) -> None:
    """It takes several times STALLED_S, and is never still for so long."""
    body = json.dumps({"inputs": ["good film"] * 1000}).encode()
    opened = connect()
    head = HEAD.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n")
    opened.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    found = b""
    while piece := opened.recv(30_000):
        found += piece
        time.sleep(0.2)
    start, _, answered = found.partition(b"\r\n\r\n")
    assert b"200 OK" in start
    assert len(json.loads(answered)) == 1000


def test_the_body_of_a_pipelined_request_has_its_own_time(
    server: LiveServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BODY_S", 5.0)
    opened = connect()
    opened.sendall(WHOLE + WHOLE[:-4])
    time.sleep(1.5)  # longer than LINGER_S
    opened.sendall(WHOLE[-4:])
    time.sleep(0.3)
    opened.sendall(WHOLE.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n"))
    assert answer(opened).count(b"HTTP/1.1 200 OK") == 3


def test_a_deadline_holds_while_the_body_is_coming(server: LiveServer, connect: Connect) -> None:
    opened = connect()
    opened.sendall(HEAD + b"X-Request-Timeout: 0.2\r\nContent-Length: 1000\r\n\r\n" + BODY)
    assert error_of(answer(opened)) == (504, "deadline_exceeded")


def test_who_cuts_the_connection_as_it_is_answered_is_no_error(
    server: LiveServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """uvloop's transports raise where asyncio's drop what is written after their end."""
    more = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 20
    draw = random.Random(0)
    for _ in range(300):
        cut = connect()
        cut.sendall(WHOLE + more)
        time.sleep(draw.uniform(0, 0.01))
        cut.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
        cut.close()
    still_serves(server)
    assert 'status="500"' not in server.client.get("/metrics").text
    assert "unhandled" not in caplog.text
