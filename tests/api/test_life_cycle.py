"""A server's life as a process: starts that are refused, SIGTERM, deadlines, faults in the
forward.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app.api.connection import listen
from app.api.draining import Drain
from app.api.middleware.deadline import end_of
from app.assemble import StartRefused
from app.serve import serve as serve_forever
from app.settings import Settings
from tests import faulty
from tests.conftest import Serve
from tests.live import eventually
from tests.process import Process, start, until_ready

TEXT = {"inputs": "the good film"}


@pytest.fixture
def run(tiny_bert: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """run(…): a server whose model fails when asked to; killed after the test."""
    running: list[Process] = []

    def begin(**settings: object) -> Process:
        folder = tmp_path / str(len(running))
        folder.mkdir()
        running.append(start(folder, module="tests.faulty", model=str(tiny_bert), **settings))
        return running[-1]

    yield begin
    for process in running:
        process.kill()


def embed(url: str, ids: object, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.post(f"{url}/embed", json={"inputs": ids}, headers=headers, timeout=60)


@pytest.mark.slow
def test_a_fault_in_the_forward_is_told_to_the_culprit_alone(run: Callable[..., Process]) -> None:
    process = run()
    good = [[2, 5, 6, i, 3] for i in range(5, 20)]
    wanted = {str(ids): embed(process.url, ids).json()[0] for ids in good}
    for bad, status, kind in (
        (faulty.CRASH, 500, "forward_failed"),
        (faulty.NO_MEMORY, 503, "out_of_memory"),
    ):
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda ids: embed(process.url, ids), [*good, bad, *good]))
        told = answers.pop(len(good))
        assert (told.status_code, told.json()["error_type"]) == (status, kind)
        assert "inputs[0]" in told.json()["error"]
        for ids, answer in zip([*good, *good], answers, strict=True):
            assert answer.status_code == 200
            assert answer.json()[0] == pytest.approx(wanted[str(ids)], abs=1e-6)
    assert process.end() == 0


@pytest.mark.slow
def test_an_input_that_fails_is_named_as_its_client_calls_it(run: Callable[..., Process]) -> None:
    process = run()
    version = httpx.get(f"{process.url}/info").json()["base"]["digest"]
    body = {"model": "base", "input": [faulty.CRASH]}
    failed = httpx.post(f"{process.url}/v1/embeddings", json=body, timeout=60)
    assert failed.json()["error"]["message"].startswith("input[0]: ")
    twice = f"{process.url}/embed?adapter=base&adapter=base@{version}"
    failed = httpx.post(twice, json={"inputs": [[2, 5, 3], faulty.CRASH]}, timeout=60)
    assert failed.json()["error"].startswith("inputs[1]: ")


@pytest.mark.slow
def test_a_forward_that_hangs_is_told_and_ends_the_process(run: Callable[..., Process]) -> None:
    process = run(max_forward_seconds=2)
    threading.Thread(target=_swallow, args=(process.url, faulty.HANG), daemon=True).start()
    told = False
    for _ in range(200):
        try:
            answer = process.client.get("/livez")
        except httpx.TransportError:
            break
        told = told or (answer.status_code, answer.json().get("error_type")) == (503, "hung")
        time.sleep(0.1)
    assert told
    assert process.child.wait(20) == 70
    log = process.log.read_text()
    assert "a forward has stood still for 2 s" in log and "faulty.py" in log


@pytest.mark.slow
def test_a_lost_device_is_told_and_ends_the_process(run: Callable[..., Process]) -> None:
    process = run()
    assert embed(process.url, [2, 5, 6, 3]).status_code == 200
    answer = embed(process.url, [faulty.POISON, [2, 5, 6, 3]])
    assert (answer.status_code, answer.json()["error_type"]) == (503, "device_lost")
    assert faulty.POISONED in answer.json()["error"]
    assert "DSA" not in answer.json()["error"]
    for path, kind in (
        ("/livez", "device_lost"),
        ("/readyz", "not_ready"),
        ("/health", "Unhealthy"),
    ):
        told = process.client.get(path)
        assert (told.status_code, told.json()["error_type"]) == (503, kind)
        assert "the device is lost" in told.json()["error"]
    assert process.child.wait(20) == 70
    assert faulty.POISONED in process.log.read_text()


def _swallow(url: str, ids: list[int]) -> None:
    with contextlib.suppress(httpx.TransportError):
        embed(url, ids)


def test_sigterm_answers_what_is_in_flight_refuses_the_rest_and_exits_zero(
    run: Callable[..., Process],
) -> None:
    process = run(max_queue_tokens=10_000_000, max_client_batch=10_000)
    long = ["the good film " * 80 for _ in range(3000)]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(embed, process.url, long)
        for _ in range(1000):
            waiting = process.client.get("/metrics").text
            if "bert_lora_queue_tokens 0.0" not in waiting:
                break
            time.sleep(0.01)
        process.child.terminate()
        refused = None
        for _ in range(100):
            ready = process.client.get("/readyz")
            if ready.status_code == 503:
                refused = embed(process.url, "new")
                break
            time.sleep(0.01)
        assert ready.json()["error_type"] == "draining"
        assert ready.headers["connection"] == "close"
        assert refused is not None
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")
        assert process.client.get("/livez").status_code == 200
        answer = first.result()
    assert answer.status_code == 200
    assert len(answer.json()) == len(long)
    assert process.child.wait(20) == 0


@pytest.mark.slow
def test_a_drain_has_a_deadline(run: Callable[..., Process]) -> None:
    process = run(drain_seconds=1)
    threading.Thread(target=_swallow, args=(process.url, faulty.HANG), daemon=True).start()
    time.sleep(1)
    began = time.monotonic()
    assert process.end() == 0
    assert time.monotonic() - began < 20
    assert "cut off at the deadline" in process.log.read_text()


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(run: Callable[..., Process]) -> None:
    process = run(drain_seconds=600, max_forward_seconds=600)
    threading.Thread(target=_swallow, args=(process.url, faulty.HANG), daemon=True).start()
    time.sleep(1)
    process.child.terminate()
    assert eventually(lambda: process.client.get("/readyz").status_code == 503)
    assert process.child.poll() is None
    assert process.end() == 0


def test_the_time_to_end_begins_when_nothing_new_is_accepted() -> None:
    drain = Drain()
    drain.begin(delay_s=1_000, at_most_s=5)
    assert drain.accept_until is not None
    assert drain.deadline == drain.accept_until + 5
    assert (drain.leaving, drain.draining, drain.too_late) == (True, False, False)
    drain.begin(delay_s=0, at_most_s=1_000)
    assert (drain.leaving, drain.draining, drain.too_late) == (True, True, False)


def test_a_deadline_counts_from_when_the_head_has_come() -> None:
    assert end_of("10", began=4.0) == 14.0
    assert end_of(None, began=4.0) is None


def test_a_server_that_is_to_end_is_not_ready_and_accepts_until_balancers_know(
    run: Callable[..., Process],
) -> None:
    process = run(drain_delay=3)
    process.child.send_signal(signal.SIGTERM)
    assert eventually(lambda: httpx.get(f"{process.url}/readyz").status_code == 503)
    assert httpx.get(f"{process.url}/readyz").json()["error_type"] == "draining"
    answered = httpx.post(f"{process.url}/embed", json={"inputs": "good"})
    assert answered.status_code == 200
    assert answered.headers["connection"] == "close"
    assert process.child.wait(30) == 0


def test_a_request_has_the_deadline_that_it_asks_for(serve: Serve, tiny_bert: Path) -> None:
    server = serve(model=str(tiny_bert), max_queue_tokens=10_000_000)
    long = {"inputs": ["the good film " * 80 for _ in range(1000)]}
    began = time.monotonic()
    late = server.client.post("/embed", json=long, headers={"X-Request-Timeout": "0.05"})
    assert (late.status_code, late.json()["error_type"]) == (504, "deadline_exceeded")
    assert time.monotonic() - began < 5
    for _ in range(100):
        if server.app.state.serving.runtime.engine.admission.tokens == 0:
            break
        time.sleep(0.01)
    assert server.app.state.serving.runtime.engine.admission.tokens == 0
    in_time = server.client.post("/embed", json=TEXT, headers={"X-Request-Timeout": "30"})
    assert in_time.status_code == 200
    for wrong in ("soon", "-1", "0", "nan", "inf"):
        answer = server.client.post("/embed", json=TEXT, headers={"X-Request-Timeout": wrong})
        assert answer.status_code == 422


def test_a_port_in_use_stops_the_start_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(StartRefused, match="cannot be listened on") as refused:
            serve_forever(Settings(port=port))
        assert time.monotonic() - began < 2
    assert str(port) in str(refused.value) and "PORT" in str(refused.value)


def test_every_address_of_a_host_is_listened_on() -> None:
    sockets = listen("localhost", 0)
    families = {s.family for s in sockets}
    for listening in sockets:
        listening.close()
    assert len(families) == len(sockets) >= 1


@pytest.mark.slow
def test_a_rolling_restart_loses_no_request_that_is_sent_once_more(
    run: Callable[..., Process],
) -> None:
    """Two servers; the first is ended under load and started again, then the second is ended."""
    servers = [run(wait=False), run(wait=False)]
    for server in servers:
        until_ready(server)
    lost: list[str] = []
    asked = [0]
    over = threading.Event()

    def client(number: int) -> None:
        with httpx.Client(timeout=30) as http:
            while not over.is_set():
                asked[0] += 1
                number += 1
                for attempt in (0, 1):
                    url = servers[(number + attempt) % 2].url
                    try:
                        answer = http.post(f"{url}/embed", json=TEXT)
                    except httpx.TransportError as error:
                        failure = repr(error)
                        continue
                    if answer.status_code == 200:
                        break
                    failure = answer.text
                else:
                    lost.append(failure)
                time.sleep(0.02)  # the server that starts needs its share of two cores

    clients = [threading.Thread(target=client, args=(i,)) for i in range(4)]
    for one in clients:
        one.start()
    port, old = int(servers[0].url.rsplit(":", 1)[1]), servers[0]
    assert old.end() == 0
    servers[0] = start(old.log.parent, model=old.environ["BERT_LORA_MODEL"], port=port)
    time.sleep(1)
    assert servers[1].end() == 0
    over.set()
    for one in clients:
        one.join()
    for server in servers:
        server.kill()
    assert asked[0] > 100
    assert lost == []
