"""A server that is full, away or killed costs time, and no text is lost or comes twice."""

from __future__ import annotations

import asyncio
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from bert_lora import Client, Unavailable, Unreachable
from bert_lora.async_client import was_not_done
from bert_lora.errors import BertLoraError, refused
from bert_lora.http import NotConnected
from bert_lora.pacing import Pace
from tests.conftest import Serve
from tests.live import LiveServer
from tests.oracles import plain_embeddings, sentences
from tests.process import free_port, start


def refusals(server: LiveServer) -> float:
    """How many times /embed was full."""
    line = 'bert_lora_refusals_total{reason="overloaded",route="/embed"} '
    return float(server.client.get("/metrics").text.split(line)[1].split("\n")[0])


def test_what_a_full_server_refuses_is_sent_again_when_it_says(
    serve: Serve, tiny_bert: Path
) -> None:
    server = serve(model=str(tiny_bert), max_queue_tokens=1, max_client_batch=32)
    texts = sentences(500)
    with Client(server.url, at_once=32) as client:
        client._client.pace.allowed = 32.0  # as after a long time without a refusal
        vectors = client.embed(texts)
    assert refusals(server) > 0
    few = server.post("/embed", inputs=texts[::25])
    assert np.array_equal(vectors[::25], np.array(few, np.float32))


@pytest.mark.slow
def test_a_server_killed_and_started_again_in_the_middle_loses_nothing_and_doubles_nothing(
    tiny_bert: Path, tmp_path: Path
) -> None:
    settings = {"model": tiny_bert, "port": free_port(), "max_client_batch": 8}
    processes = [start(tmp_path, **settings)]
    texts = [f"{text[:40]} {i % 7}" for i, text in enumerate(sentences(900))]
    streamed: list[np.ndarray] = []
    with Client(processes[0].url) as client:
        for some, vectors in client.embed_each(texts):
            streamed.append(vectors)
            assert len(some) == len(vectors)
            if len(processes) == 1 and sum(map(len, streamed)) > 200:
                processes[0].kill()
                processes.append(start(tmp_path, wait=False, **settings))
        whole, undisturbed = np.concatenate(streamed), client.embed(texts)
    processes[-1].kill()
    assert len(processes) == 2
    assert whole.shape == (900, 32)
    assert np.array_equal(whole, undisturbed)
    assert np.allclose(whole[:40], plain_embeddings(tiny_bert, texts[:40]).numpy(), atol=1e-5)


class Peer:
    """Something that answers each request by the next of `answers`, the last one for ever.

    An answer is (status, headers, body), or None: the connection breaks in the middle of one.
    """

    def __init__(self, *answers: tuple[int, dict[str, str], bytes] | None) -> None:
        self.asked: list[tuple[float, str, bytes]] = []
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                peer.asked.append((time.monotonic(), f"{self.command} {self.path}", body))
                answer = answers[min(len(peer.asked), len(answers)) - 1]
                status, headers, content = answer or (200, {}, b"half")
                self.send_response(status)
                for name, value in {"X-Request-Id": "id", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content) + 4 * (answer is None)))
                self.end_headers()
                self.wfile.write(content)
                self.close_connection = answer is None

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


INFO = (200, {}, b'{"max_client_batch_size": 8, "hidden_size": 2}')
FULL = (429, {"retry-after-ms": "300"}, b'{"error": "full", "error_type": "overloaded"}')
VECTORS = (200, {"X-Shape": "1,2", "X-Embedding-Space": "s"}, np.ones(2, "<f4").tobytes())
DONE = (200, {}, b'{"name": "a"}')


def test_it_waits_as_long_as_it_is_told_to() -> None:
    with Peer(INFO, FULL, FULL, VECTORS) as peer, Client(peer.url) as client:
        assert client.embed("good").tolist() == [1, 1]
    times = [at for at, _, _ in peer.asked]
    assert times[2] - times[1] >= 0.3
    assert times[3] - times[2] >= 0.3
    assert len({body for _, _, body in peer.asked[1:]}) == 1


def test_an_answer_that_breaks_off_is_asked_for_again() -> None:
    with Peer(INFO, None, VECTORS) as peer, Client(peer.url) as client:
        assert client.embed("good").tolist() == [1, 1]
    assert len(peer.asked) == 3


def test_patience_ends_with_the_servers_own_words() -> None:
    with Peer(INFO, FULL) as peer, Client(peer.url, patience=0.5) as client:
        with pytest.raises(Unavailable, match="full") as caught:
            client.embed("good")
        assert (caught.value.status, caught.value.code) == (429, "overloaded")
        assert len(peer.asked) == 3


def test_what_is_too_large_for_the_server_is_halved(tmp_path: Path) -> None:
    large = (413, {}, b'{"error": "too large", "error_type": "payload_too_large"}')
    with Peer(INFO, large, VECTORS, VECTORS) as peer, Client(peer.url) as client:
        assert client.embed(["good", "film"]).shape == (2, 2)
    bodies = [body for _, _, body in peer.asked[1:]]
    assert bodies == [b'{"inputs":["good","film"]}', b'{"inputs":["good"]}', b'{"inputs":["film"]}']


def test_a_change_whose_answer_was_lost_is_not_made_twice(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x")
    with Peer(INFO, None, DONE) as peer, Client(peer.url) as client:
        client.info()
        with pytest.raises(Unreachable):
            client.rollback("a")
        assert len(peer.asked) == 2
    with Peer(INFO, None, DONE) as peer, Client(peer.url) as client:
        client.info()
        assert client.put("a", tmp_path / "a.safetensors") == {"name": "a"}  # twice is as once


def test_a_server_of_another_kind_is_told_from_ours() -> None:
    page = (200, {"X-Request-Id": ""}, b"<html>")
    with (
        Peer(page) as peer,
        Client(peer.url) as client,
        pytest.raises(Unreachable, match="no bert"),
    ):
        client.info()
    with Peer((502, {}, b"<html>bad gateway")) as peer:
        with Client(peer.url, patience=0.2) as client, pytest.raises(Unavailable) as caught:
            client.info()
        assert caught.value.code == "http_502"


def test_answers_open_the_window_and_refusals_halve_it() -> None:
    async def windows() -> list[float]:
        pace, seen = Pace(4, 10), []
        full = [refused(429, {}, 0.001), refused(429, {}, 0.001)]

        async def attempt(refusals: list[Exception]) -> None:
            seen.append(pace.allowed)
            if refusals:
                raise refusals.pop()

        for _ in range(9):
            await pace.run(lambda: attempt([]))
        await pace.run(lambda: attempt(full))
        return seen

    seen = asyncio.run(windows())
    assert seen[0] == 2
    assert seen[8] == pytest.approx(4, abs=0.1)
    assert seen[9:] == [4, 2, 1]


def test_no_more_are_under_way_than_the_window_lets() -> None:
    async def most() -> int:
        pace, now, highest = Pace(3, 10), 0, 0

        async def attempt() -> None:
            nonlocal now, highest
            now += 1
            highest = max(highest, now)
            await asyncio.sleep(0.001)
            now -= 1

        await asyncio.gather(*(pace.run(attempt) for _ in range(60)))
        return highest

    assert asyncio.run(most()) == 3


def test_a_change_is_asked_for_again_only_where_it_was_certainly_not_made() -> None:
    def told(status: int, type_: str) -> BertLoraError:
        return refused(status, {"error_type": type_, "error": "?"})

    assert was_not_done(told(503, "store_unavailable"))
    assert was_not_done(told(429, "overloaded"))
    assert was_not_done(NotConnected("no server"))
    assert was_not_done(refused(429, {}))  # a proxy's: the server has not seen it
    assert not was_not_done(refused(503, {}))  # a proxy's, when the server goes away in the middle
    assert not was_not_done(told(503, "change_unsure"))
    assert not was_not_done(told(504, "deadline_exceeded"))
    assert not was_not_done(Unreachable("the connection was lost"))
