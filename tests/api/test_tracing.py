"""Tracing: what a collector gets over OTLP from a running server, and what clients see of it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Serve
from tests.live import LiveServer, eventually, live_server
from tests.oracles import make_adapter, put

trace_service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
    reason="the extra otel is not installed: pip install -e '.[otel]'",
)

ROOT = Path(__file__).parent.parent.parent
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = (f"00-{TRACE}-{PARENT}-{flags}" for flags in ("01", "00"))
SECRET = "a very private sentence"


@dataclass
class Collector:
    """What came over HTTP to /v1/traces, as protobuf."""

    url: str = ""
    spans: list[Any] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        self.raw.append(body)
        for group in trace_service.ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(attributes(group.resource))
            for scope in group.scope_spans:
                self.spans.extend(scope.spans)

    def named(self, name: str, count: int = 1, matches: Callable[[Any], bool] = bool) -> list[Any]:
        """Spans of that name, once there are so many."""

        def those() -> list[Any]:
            return [s for s in list(self.spans) if s.name == name and matches(s)]

        assert eventually(lambda: len(those()) >= count), [s.name for s in self.spans]
        return those()


def attributes(of: Any) -> dict[str, Any]:
    return {a.key: value_of(a.value) for a in of.attributes}


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(v) for v in value.array_value.values]
    return getattr(value, kind)


def in_trace(trace: str) -> Callable[[Any], bool]:
    return lambda span: span.trace_id.hex() == trace


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    got = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    got.url = f"http://127.0.0.1:{server.server_port}"
    yield got
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def traced(
    collector: Collector, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("traced")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        server = live_server(
            model=str(tiny_bert), store=folder / "store", adapters_dir=folder / "none", tracing=True
        )
    put(server.client, "mine", make_adapter(tiny_bert, folder / "adapter", 0))
    yield server
    server.stop()


def test_a_requests_span_has_its_caller_for_a_parent_and_its_steps_below_it(
    traced: LiveServer, collector: Collector
) -> None:
    headers = {"traceparent": SAMPLED, "tracestate": "vendor=1", "X-Request-Id": "req-1"}
    answer = traced.client.post("/embed?adapter=mine", json={"inputs": SECRET}, headers=headers)
    (span,) = collector.named("POST /embed", matches=in_trace(TRACE))
    assert (span.parent_span_id.hex(), span.trace_state) == (PARENT, "vendor=1")
    assert span.kind == span.SPAN_KIND_SERVER
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{span.span_id.hex()}-01"
    version = traced.client.get("/adapters/mine").json()["version"]
    tokens = attributes(span).pop("bert_lora.tokens")
    assert attributes(span) == {
        "http.request.method": "POST",
        "http.route": "/embed",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "bert_lora.request_id": "req-1",
        "bert_lora.adapter": ["mine"],
        "bert_lora.version": [f"mine@{version}"],
        "bert_lora.tokens": tokens,
    }
    steps = [
        collector.named(n, matches=in_trace(TRACE))[0] for n in ("tokenize", "queue", "forward")
    ]
    assert all(step.parent_span_id == span.span_id for step in steps)
    times = [t for s in steps for t in (s.start_time_unix_nano, s.end_time_unix_nano)]
    slack = 10**9  # ns: clocks and units are tried here, and no speed
    assert all(a <= b + slack for a, b in pairwise(times))
    assert span.start_time_unix_nano <= times[0] + slack
    assert times[-1] <= span.end_time_unix_nano + slack
    assert attributes(steps[-1])["bert_lora.tokens"] == tokens


def test_a_forward_and_its_batch_are_linked_both_ways(
    traced: LiveServer, collector: Collector
) -> None:
    texts = ["how is my card"] * 3 + [f"card {'lost ' * n}" for n in range(60)]
    answer = traced.client.post("/embed?adapter=mine", json={"inputs": texts})
    trace = answer.headers["traceresponse"].split("-")[1]
    (request,) = collector.named("POST /embed", matches=in_trace(trace))
    tokens = attributes(request)["bert_lora.tokens"]
    forwards = collector.named("forward", matches=in_trace(trace))
    assert sum(attributes(f)["bert_lora.tokens"] for f in forwards) == tokens
    assert sum(attributes(f)["bert_lora.sequences"] for f in forwards) == len(texts)
    assert len(forwards) > 1  # more tokens than a batch takes
    for forward in forwards:
        (link,) = forward.links
        (batch,) = collector.named("batch", matches=lambda b, link=link: b.span_id == link.span_id)
        assert [back.span_id for back in batch.links] == [forward.span_id]
        assert batch.trace_id == link.trace_id != forward.trace_id
        assert attributes(batch)["bert_lora.adapters"] == 1


def test_what_the_caller_does_not_sample_is_not_sent_and_is_answered_all_the_same(
    traced: LiveServer, collector: Collector
) -> None:
    other = TRACE[::-1]
    headers = {"traceparent": UNSAMPLED.replace(TRACE, other)}
    answer = traced.client.post("/embed", json={"inputs": "good"}, headers=headers)
    assert answer.headers["traceresponse"].startswith(f"00-{other}-")
    assert answer.headers["traceresponse"].endswith("-00")
    after = traced.client.post("/embed", json={"inputs": "good"})
    collector.named("POST /embed", matches=in_trace(after.headers["traceresponse"].split("-")[1]))
    assert not [s for s in collector.spans if s.trace_id.hex() == other]


@pytest.mark.parametrize("broken", ["", "nonsense", "00-0-0-01", f"ff-{TRACE}-{PARENT}-01"])
def test_a_traceparent_that_is_none_begins_a_new_trace(traced: LiveServer, broken: str) -> None:
    answer = traced.client.post("/embed", json={"inputs": "good"}, headers={"traceparent": broken})
    assert answer.status_code == 200
    assert TRACE not in answer.headers["traceresponse"]


@pytest.mark.parametrize(
    ("path", "status", "kind", "route"),
    [
        ("/embed?adapter=nobody", 404, "adapter_not_found", "POST /embed"),
        ("/classify", 422, "no_head", "POST /classify"),
        ("/nowhere/private", 404, "not_found", "POST unknown"),
    ],
)
def test_a_refusal_is_told_with_its_type_and_is_no_error(
    traced: LiveServer, collector: Collector, path: str, status: int, kind: str, route: str
) -> None:
    answer = traced.client.post(path, json={"inputs": SECRET})
    assert answer.status_code == status
    trace = answer.headers["traceresponse"].split("-")[1]
    (span,) = collector.named(route, matches=in_trace(trace))
    known = attributes(span)
    assert (known["http.response.status_code"], known["error.type"]) == (status, kind)
    assert span.status.code == span.status.STATUS_CODE_UNSET


def test_a_forward_that_fails_is_an_error(
    traced: LiveServer, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(traced.app.state.serving.runtime.engine.encoder, "run", fail)
    answer = traced.client.post("/embed", json={"inputs": "good"})
    assert answer.status_code == 500
    trace = answer.headers["traceresponse"].split("-")[1]
    (span,) = collector.named("POST /embed", matches=in_trace(trace))
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == "forward_failed"


def test_probes_have_no_spans_and_nothing_holds_a_text(
    traced: LiveServer, collector: Collector
) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert "traceresponse" not in traced.client.get(path).headers
    secret = {"inputs": SECRET, "prompt": SECRET}
    answer = traced.client.post(f"/embed?adapter={SECRET}", json=secret)
    collector.named("POST /embed", matches=in_trace(answer.headers["traceresponse"].split("-")[1]))
    assert not {s.name for s in collector.spans} & {"GET /livez", "GET /readyz", "GET /metrics"}
    assert not any(SECRET.encode() in body for body in collector.raw)
    assert {r["service.name"] for r in collector.resources} == {"bert-lora-server"}


@pytest.mark.slow
def test_without_the_setting_nothing_is_traced(serve: Serve, tiny_bert: Path) -> None:
    client = serve(model=str(tiny_bert)).client
    answer = client.post("/embed", json={"inputs": "good"}, headers={"traceparent": SAMPLED})
    assert "traceresponse" not in answer.headers
    code = (
        "import sys, app.main; print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_tracing_without_opentelemetry_is_a_refusal_that_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None\n"
        "from bert_lora.cli import cli\n"
        f"cli(['serve', '--tracing', 'true', '--port', '0', '--store', {str(tmp_path)!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "bert-lora-server[otel]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_collector_that_is_away_costs_no_answer_and_no_end(
    serve: Serve, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    server = serve(model=str(tiny_bert), tracing=True)
    assert server.client.post("/embed", json={"inputs": "good"}).status_code == 200
    server.stop()
    assert not server._thread.is_alive()
