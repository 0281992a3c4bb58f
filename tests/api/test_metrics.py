"""/metrics: each is documented, named as Prometheus names things, and moves when the thing happens."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.inference.busiest import OTHERS
from tests.conftest import Serve
from tests.live import LiveServer, eventually, live_server
from tests.oracles import files_of, make_adapter, put
from tests.process import start

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "metrics.md"
ROW = re.compile(r"^\| `([a-z_:]+)` \| (\w+) \| (.*?)\| ", re.MULTILINE)
ONLY_WITH_A_GPU = {f"bert_lora_gpu_{what}_bytes" for what in ("allocated", "reserved", "limit")}
IDS = [[2, 7, 3], [2, 3], [2, 7, 8, 9, 3]]  # 10 tokens; padded to the longest they are 15


@pytest.fixture(scope="module")
def server(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """With the adapters a, b and c, of which two fit into memory."""
    folder = tmp_path_factory.mktemp("metrics")
    live = live_server(
        model=str(tiny_bert),
        store=folder / "store",
        adapters_dir=folder / "none",
        adapter_memory_bytes=20_000,
        gateway_metrics=True,
    )
    for seed, name in enumerate("abc", 1):
        put(live.client, name, make_adapter(tiny_bert, folder / name, seed, scale=4))
    yield live
    live.stop()


def families(client: httpx.Client) -> list[Metric]:
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return list(text_string_to_metric_families(answer.text))


def value(client: httpx.Client, name: str, **labels: str) -> float:
    """The sum of the samples of this name that carry these labels; of a histogram its count."""
    names = (name, f"{name}_count")
    samples = [s for family in families(client) for s in family.samples if s.name in names]
    assert samples, f"there is no {name}"
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def exposed(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def documented() -> dict[str, tuple[str, set[str]]]:
    """Of each metric of the document: what kind it is, and its labels."""
    rows = ROW.findall(DOCUMENT.read_text(encoding="utf-8"))
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_each_metric_is_in_the_document_with_its_kind_and_labels_and_no_other_is(
    server: LiveServer,
) -> None:
    rows = documented()
    seen = {exposed(family): family for family in families(server.client)}
    assert set(seen) - set(rows) == set()
    assert set(rows) - set(seen) <= ONLY_WITH_A_GPU
    for name, family in seen.items():
        kind, labels = rows[name]
        assert kind == family.type, name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == labels, name


def test_each_name_follows_prometheus_conventions(server: LiveServer) -> None:
    for family in families(server.client):
        name = exposed(family)
        assert re.fullmatch(r"(bert_lora|process|vllm)[_:][a-z0-9_]+", name)
        assert family.documentation.endswith("."), name
        if not name.startswith("bert_lora"):
            continue
        assert (family.type == "counter") == name.endswith("_total"), name
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|percent|created)(_|$)", name), name


def test_promtool_finds_nothing_against_them(tiny_bert: Path, serve: Serve) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    text = serve(model=str(tiny_bert)).client.get("/metrics").text
    check = [promtool, "check", "metrics"]
    done = subprocess.run(check, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_request_moves_its_times_and_the_batchs(server: LiveServer) -> None:
    names = [
        "bert_lora_tokenize_seconds",
        "bert_lora_queue_seconds",
        "bert_lora_forward_seconds",
        "bert_lora_batch_tokens_sum",
        "bert_lora_sequences_total",
        "bert_lora_padding_avoided_tokens_total",
        "bert_lora_batch_adapters_sum",
        "bert_lora_batch_fill_ratio_sum",
    ]
    before = [value(server.client, name) for name in names]
    body = {"inputs": IDS, "adapters": ["a", None, "b"]}
    server.client.post("/embed", json=body).raise_for_status()
    grown = [value(server.client, n) - was for n, was in zip(names, before, strict=True)]
    fill = 10 / value(server.client, "bert_lora_batch_limit_tokens")
    assert grown == pytest.approx([1, 1, 1, 10, 3, 5, 2, fill])


def test_updates_take_a_part_of_a_forward_and_none_where_there_are_none(server: LiveServer) -> None:
    def seconds() -> tuple[float, float]:
        names = "bert_lora_update_seconds_total", "bert_lora_forward_seconds_sum"
        return value(server.client, names[0]), value(server.client, names[1])

    server.client.post("/embed?adapter=a", json={"inputs": IDS}).raise_for_status()
    updates, forwards = seconds()
    server.client.post("/embed", json={"inputs": IDS}).raise_for_status()
    assert seconds()[0] == updates
    server.client.post("/embed?adapter=a", json={"inputs": IDS}).raise_for_status()
    assert 0 < seconds()[0] - updates < seconds()[1] - forwards


def test_what_waits_is_seen_waiting_and_by_which_adapter(server: LiveServer) -> None:
    release, client = threading.Event(), server.client
    engine = server.app.state.serving.runtime.engine
    server.post("/embed?adapter=a", inputs=IDS)  # it is in memory
    for _ in engine._threads:
        engine.queue.put_call(lambda: release.wait(30))
    asked = threading.Thread(target=server.post, args=("/embed?adapter=a",), kwargs={"inputs": IDS})
    asked.start()
    assert eventually(lambda: value(client, "bert_lora_waiting_requests") == 1)
    assert value(client, "bert_lora_queue_tokens") == 10
    assert value(client, "bert_lora_queue_limit_tokens") >= 4096
    assert value(client, "bert_lora_running_requests") == 0
    assert value(client, "vllm:num_requests_waiting") == 1
    lora = next(f for f in families(client) if f.name == "vllm:lora_requests_info").samples[0]
    assert lora.labels["waiting_lora_adapters"] == "a"
    assert lora.labels["running_lora_adapters"].split(",")[0] == "a"  # in memory, used last
    assert abs(lora.value - value(client, "process_start_time_seconds")) < 36_000
    release.set()
    asked.join(30)
    assert eventually(lambda: value(client, "bert_lora_waiting_requests") == 0)
    assert value(client, "bert_lora_drain_tokens_per_second") > 0


@pytest.mark.slow
def test_a_forward_that_hangs_is_a_request_that_runs_and_the_server_is_not_ready(
    tiny_bert: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, module="tests.faulty", model=str(tiny_bert), max_forward_seconds=2)
    assert value(process.client, "bert_lora_ready") == 1
    hang = {"json": {"inputs": [2, 13, 12, 13, 3]}, "timeout": 60}
    asked = threading.Thread(target=_swallow, args=(f"{process.url}/embed", hang))
    asked.start()
    assert eventually(lambda: value(process.client, "bert_lora_running_requests") == 1)
    assert eventually(lambda: value(process.client, "bert_lora_ready") == 0)
    process.kill()
    asked.join(30)


def _swallow(url: str, request: dict[str, Any]) -> None:
    with contextlib.suppress(httpx.TransportError):
        httpx.post(url, **request)


def test_loads_evictions_failures_and_broken_names_are_counted(
    server: LiveServer, tiny_bert: Path, tmp_path: Path
) -> None:
    client = server.client
    loads = value(client, "bert_lora_adapter_load_seconds")
    misses = value(client, "bert_lora_adapter_misses_total")
    evictions = value(client, "bert_lora_adapter_evictions_total")
    for name in "abcabc":
        server.client.post(f"/embed?adapter={name}", json={"inputs": IDS}).raise_for_status()
    assert value(client, "bert_lora_resident_adapters") == 2
    assert value(client, "bert_lora_resident_bytes") <= 20_000
    assert value(client, "bert_lora_adapter_misses_total") - misses >= 4
    grown = value(client, "bert_lora_adapter_load_seconds") - loads
    assert grown == value(client, "bert_lora_adapter_evictions_total") - evictions >= 4

    folder = make_adapter(tiny_bert, tmp_path / "wrong", 9)
    golden = json.dumps({"input": "good", "embedding": [1.0] * 32}).encode()
    files = files_of(folder) | {"golden.jsonl": ("golden.jsonl", golden)}
    failed = "bert_lora_adapter_load_failures_total"
    assert value(client, failed, reason="certificate") == 0
    assert client.put("/adapters/wrong", files=files).status_code == 422
    assert value(client, failed, reason="certificate") == 1
    refused = {"route": "/adapters/{name}", "reason": "adapter_rejected"}
    assert value(client, "bert_lora_refusals_total", **refused) == 1


def test_damaged_merged_and_deleted_adapters_are_seen(
    serve: Serve, tiny_bert: Path, tmp_path: Path
) -> None:
    server = serve(model=str(tiny_bert), adapter_memory_bytes=0)
    client = server.client
    for seed, name in enumerate("xyz", 1):
        put(client, name, make_adapter(tiny_bert, tmp_path / name, seed))
    client.post("/adapters/z/merge").raise_for_status()
    assert value(client, "bert_lora_merged_adapters") == 1
    assert value(client, "bert_lora_adapters") == 3
    version = client.get("/adapters/x").json()["version"]
    (tmp_path / "store" / "versions" / version / "adapter_model.safetensors").write_bytes(b"bad")
    assert client.post("/embed?adapter=x", json={"inputs": "good"}).status_code == 404
    client.delete("/adapters/y").raise_for_status()
    names = ("broken_adapters", "set_aside_versions", "tombstones", "adapters")
    assert [value(client, f"bert_lora_{name}") for name in names] == [1, 1, 1, 1]


def refusals(client: httpx.Client, headers: dict[str, str]) -> dict[tuple[str, str], float]:
    text = client.get("/metrics", headers=headers).text
    family = next(f for f in text_string_to_metric_families(text) if f.name == "bert_lora_refusals")
    return {(s.labels["route"], s.labels["reason"]): s.value for s in family.samples}


def test_each_route_has_the_refusals_of_its_document_from_zero(
    serve: Serve, tiny_bert: Path
) -> None:
    client = serve(model=str(tiny_bert)).client
    before = refusals(client, {})
    assert set(before.values()) == {0}
    paths = client.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        reasons = {reason for route, reason in before if route == path}
        statuses = {int(s) for m in methods.values() for s in m["responses"] if int(s) >= 400}
        assert len(reasons) >= len(statuses), path
    for reason in ("overloaded", "quota_exceeded", "deadline_exceeded", "forward_failed"):
        assert ("/embed", reason) in before
        assert ("/adapters", reason) not in before
    assert ("/adapters/{name}", "adapter_rejected") in before


def test_refusals_are_counted_by_route_and_reason_the_doors_too(
    serve: Serve, tiny_bert: Path
) -> None:
    server = serve(
        model=str(tiny_bert),
        api_keys="sesame",
        admin_keys="boss",
        max_body_bytes=1000,
        max_queue_tokens=20,
    )
    client, key, boss = server.client, bearer("sesame"), bearer("boss")
    before = refusals(client, boss)
    release, engine = threading.Event(), server.app.state.serving.runtime.engine
    slow = {**key, "X-Request-Timeout": "0.01"}
    gzip = {**key, "Content-Encoding": "gzip"}
    text = {"inputs": "good"}
    client.post("/embed", json=text)  # no key
    client.delete("/adapters/a", headers=key)  # one for inference
    client.post("/embed/nowhere", json=text, headers=key)
    client.post("/embed", content=b"x" * 1001, headers=key)
    client.post("/embed", json=text, headers=gzip)
    for _ in engine._threads:
        engine.queue.put_call(lambda: release.wait(30))
    client.post("/embed", json=text, headers=slow)
    body = {"inputs": [[2, *[7] * 30, 3]]}
    waiting = threading.Thread(target=httpx.post, args=(f"{server.url}/embed",), kwargs={"json": body, "headers": key})  # fmt: skip
    waiting.start()
    assert eventually(lambda: engine.admission.tokens > 20)
    assert client.post("/embed", json=body, headers=key).status_code == 429
    release.set()
    waiting.join(30)
    server.app.state.drain.begin(0, 60)
    client.post("/embed", json=text, headers=key)
    after = refusals(client, boss)
    assert {k: v - before[k] for k, v in after.items() if v != before[k]} == {
        ("/embed", "unauthenticated"): 1,
        ("/adapters/{name}", "forbidden"): 1,
        ("unknown", "not_found"): 1,
        ("/embed", "payload_too_large"): 1,
        ("/embed", "unsupported_media_type"): 1,
        ("/embed", "deadline_exceeded"): 1,
        ("/embed", "overloaded"): 1,
        ("/embed", "draining"): 1,
    }


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_what_is_no_http_is_a_refusal_too(server: LiveServer) -> None:
    labels = {"route": "unknown", "reason": "malformed"}
    before = value(server.client, "bert_lora_refusals_total", **labels)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(b"no http at all\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 400")
    assert value(server.client, "bert_lora_refusals_total", **labels) == before + 1


def test_without_the_setting_there_are_no_other_servers_names(client: httpx.Client) -> None:
    assert "vllm" not in client.get("/metrics").text


def series(client: httpx.Client, name: str) -> int:
    return client.get("/metrics").text.count(f'adapter="{name}"')


def test_metrics_name_the_busiest_and_forget_the_deleted(
    serve: Serve, tiny_bert: Path, folders: dict[str, Path]
) -> None:
    client = serve(model=str(tiny_bert), metrics_adapters=1).client
    put(client, "a", folders["a"])
    put(client, "b", folders["b"])
    for name in ("a", "b", "b"):
        client.post("/embed", params={"adapter": name}, json={"inputs": "good"}).raise_for_status()
    assert series(client, "a")
    assert not series(client, "b")
    assert series(client, OTHERS)
    client.delete("/adapters/a").raise_for_status()
    assert not series(client, "a")
    client.post("/embed", params={"adapter": "b"}, json={"inputs": "good"}).raise_for_status()
    assert series(client, "b")
