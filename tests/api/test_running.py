"""Probes, metrics, documentation without internet, ids, and clients that go away."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import time

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.inference.metrics import Metrics
from tests.conftest import Serve
from tests.live import LiveServer


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """The sum of the metric's samples that carry these labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [s for family in families for s in family.samples if s.name == name]
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def test_probes_answer(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").json()["status"] == "ready"
    assert client.get("/health").status_code == 200


def test_metrics_count_requests_tokens_and_latency_by_adapter(served: httpx.Client) -> None:
    before = {
        key: metric(served, key[0], adapter=key[1])
        for key in [
            ("bert_lora_requests_total", "a"),
            ("bert_lora_tokens_total", "a"),
            ("bert_lora_request_seconds_count", "a"),
            ("bert_lora_tokens_total", "base"),
        ]
    }
    served.post("/embed?adapter=a", json={"inputs": [[2, 7, 3], [2, 3]]})
    served.post("/embed", json={"inputs": [2, 7, 8, 3]})
    grown = {key: metric(served, key[0], adapter=key[1]) - was for key, was in before.items()}
    assert list(grown.values()) == [1, 5, 1, 4]
    served.post("/embed?adapter=nobody", json={"inputs": "x"})
    assert metric(served, "bert_lora_requests_total", route="/embed", status="404") >= 1
    assert metric(served, "bert_lora_requests_total", adapter="nobody") == 0


def test_metrics_count_what_the_model_ran(served: httpx.Client) -> None:
    names = ("bert_lora_sequences_total", "bert_lora_batch_tokens_sum")
    before = [metric(served, name) for name in names]
    served.post("/embed", json={"inputs": [[2, 7, 3], [2, 3]]}).raise_for_status()
    assert [metric(served, name) - was for name, was in zip(names, before, strict=True)] == [2, 5]


def test_a_request_through_adapters_that_have_no_name_in_metrics_counts_once() -> None:
    metrics = Metrics(most_adapters=1)
    metrics.request("/embed", ["a", "b", "c"], 200, 0.25)
    lines = metrics.text().decode().splitlines()
    for label in ("a", "_others"):
        where = f'adapter="{label}",route="/embed"'
        assert f'bert_lora_requests_total{{{where},status="200"}} 1.0' in lines
        assert f"bert_lora_request_seconds_sum{{{where}}} 0.25" in lines


def test_others_are_told_at_the_root_what_this_is_and_a_request_that_works(
    client: httpx.Client, tiny_server: LiveServer
) -> None:
    answer = client.get("/", headers={"Accept": "*/*"})
    told = answer.json()
    own = {"name", "version", "status", "docs", "openapi", "example", "may", "base"}
    assert told.keys() == own
    assert (told["status"], told["base"]) == ("ready", "tiny-bert")
    assert told["docs"] == f"{tiny_server.url}/docs"
    assert client.get(told["openapi"]).json()["paths"]
    assert client.head("/").headers["content-length"] == answer.headers["content-length"]
    ran = subprocess.run(["sh", "-c", told["example"]], capture_output=True, check=True)
    assert len(json.loads(ran.stdout)[0]) == 32


def test_a_stranger_is_not_told_which_base_a_keyed_server_has(
    serve: Serve, tiny_bert: object
) -> None:
    client = serve(model=str(tiny_bert), api_keys="k3y").client
    assert "base" not in client.get("/").json()
    assert client.get("/").json()["example"].endswith('-H "Authorization: Bearer $KEY"')
    assert client.get("/", headers={"Authorization": "Bearer k3y"}).json()["base"] == "tiny-bert"


def test_docs_need_no_internet(client: httpx.Client) -> None:
    page = client.get("/docs").text
    linked = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert linked
    for link in linked:
        assert not link.startswith(("http", "//"))
        assert client.get(link).status_code == 200


def test_every_answer_carries_its_id_and_its_times(served: httpx.Client) -> None:
    mine = served.post("/embed", json={"inputs": "x"}, headers={"X-Request-Id": "mine-1"})
    assert mine.headers["x-request-id"] == "mine-1"
    steps = re.findall(r"(\w+);dur=(\d+\.\d+)", mine.headers["server-timing"])
    assert [name for name, _ in steps] == ["tokenize", "queue", "inference"]
    longest = "x" * 128
    assert (
        served.get("/livez", headers={"X-Request-Id": longest}).headers["x-request-id"] == longest
    )
    for odd in (b"x" * 129, b"caf\xe9", b"a\tb", b""):
        other = served.get("/livez", headers=[(b"X-Request-Id", odd)])
        assert re.fullmatch(r"[0-9a-f]{32}", other.headers["x-request-id"]), odd


def test_octets_base64_and_json_hold_the_same_floats(served: httpx.Client) -> None:
    body = {"inputs": ["good film", "my card"]}
    floats = np.array(served.post("/embed?adapter=a", json=body).json(), dtype="<f4")
    raw = served.post("/embed?adapter=a", json=body, headers={"Accept": "application/octet-stream"})
    assert raw.headers["x-shape"] == "2,32"
    assert raw.content == floats.tobytes()
    coded = served.post("/embed?adapter=a", json={**body, "encoding_format": "base64"}).json()
    assert [base64.b64decode(c) for c in coded] == [row.tobytes() for row in floats]


def test_dimensions_normalize_and_pooling_are_the_requests(served: httpx.Client) -> None:
    def ask(**more: object) -> np.ndarray:
        return np.array(served.post("/embed", json={"inputs": "good film", **more}).json()[0])

    plain, raw = ask(), ask(normalize=False)
    np.testing.assert_allclose(plain, raw / np.linalg.norm(raw), atol=1e-6)
    cut = ask(dimensions=5)
    np.testing.assert_allclose(cut, raw[:5] / np.linalg.norm(raw[:5]), atol=1e-6)
    assert len({ask(pooling=p).tobytes() for p in ("mean", "cls", "last", "max", "pooler")}) == 5


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/embed", 405)]
)
def test_unknown_routes_have_the_errors_shape(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert {"error", "error_type", "request_id"} <= answer.json().keys()


def test_a_client_that_went_away_is_dropped_from_the_queue(serve: Serve, tiny_bert: object) -> None:
    server = serve(model=str(tiny_bert), max_batch_tokens=80)
    body = b'{"inputs": [' + b",".join(b'"%s"' % (b"good film " * 30) for _ in range(1000)) + b"]}"
    head = (
        "POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        assert eventually_waiting(server)
    for _ in range(50):  # the server learns of it a moment later
        if server.client.post("/embed", json={"inputs": "x"}).status_code == 200:
            break
    assert metric(server.client, "bert_lora_sequences_total") < 1000
    assert metric(server.client, "bert_lora_requests_total", status="499") == 1
    assert metric(server.client, "bert_lora_queue_tokens") == 0


def eventually_waiting(server: LiveServer) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if server.app.state.serving.runtime.engine.admission.tokens > 0:
            return True
        time.sleep(0.001)
    return False
