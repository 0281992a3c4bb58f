"""A real Prometheus watches a server that misbehaves: deploy/'s rules and dashboard, as they are.

Only their durations are changed: a minute of the rules is two seconds of this test (`in_seconds`).
Prometheus and promtool come with Debian's package: apt-get install --no-install-recommends prometheus
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests import faulty
from tests.live import eventually
from tests.oracles import files_of, make_adapter, put
from tests.process import Process, free_port, start

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "bert-lora-server.json"
MINUTE_S = 2
RESIDENT = 8  # versions of 8,192 bytes that fit into memory
IDS = [[2, 7, 8, 9, 3]]
TOKEN = 75  # of no text that an upload is tried with
MISBEHAVED = {
    "BertLoraErrors",
    "BertLoraOverloaded",
    "BertLoraQueueNearLimit",
    "BertLoraAdapterBroken",
    "BertLoraNotFinite",
    "BertLoraUploadsRefused",
    "BertLoraCertificateFailed",
    "BertLoraEvictionThrash",
    "BertLoraCanaryErrors",
    "BertLoraCanaryRefuses",
    "BertLoraShadowDiffers",
    "BertLoraVersionsDamaged",
}
AT_ITS_END = {"BertLoraNotReady", "BertLoraDown"}
ON_A_BUSY_MACHINE = {"BertLoraSlow", "BertLoraAdapterSlow"}  # alerts_test.yml has these
EXPRESSIONS = re.compile(r"\$(job|instance|__rate_interval)\b")
VALUES = {"job": "bert-lora-server", "instance": ".*", "__rate_interval": "10s"}


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: apt-get install --no-install-recommends prometheus")
    return path


def in_seconds(text: str) -> str:
    """Every duration of minutes as one of MINUTE_S as many seconds."""
    return re.sub(r"\b(\d+)m\b", lambda m: f"{MINUTE_S * int(m[1])}s", text)


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    return [
        p for p in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"] if "targets" in p
    ]


def dashboard_expressions() -> list[str]:
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [EXPRESSIONS.sub(lambda m: VALUES[m[1]], expression) for expression in expressions]


def without_thresholds(expression: str) -> str:
    """What an alert compares, whether it fires or not."""
    return re.sub(r" (>|==) [\d.]+", "", in_seconds(expression)).replace("> on", "- on")


def test_each_alert_is_explained_and_the_document_explains_no_other() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in rules()]
    for rule in rules():
        notes = rule["annotations"]
        assert notes["runbook_url"] == f"docs/alerts.md#{rule['alert'].lower()}"
        assert notes["summary"] and notes["description"].endswith("."), rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_alerts_and_dashboard_ask_for_documented_metrics_only() -> None:
    documented = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.M))
    for expression in [*(rule["expr"] for rule in rules()), *dashboard_expressions()]:
        names = set(re.findall(r"\b(?:bert_lora|process)_\w+", expression))
        histograms = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names - documented}
        assert histograms <= documented, expression


@pytest.mark.parametrize("check", [("check", "rules", RULES), ("check", "config", CONFIG), ("test", "rules", ROOT / "tests/deploy/alerts_test.yml")], ids=lambda c: " ".join(map(str, c[:2])))  # fmt: skip
def test_promtool_is_content(check: tuple[str, ...]) -> None:
    done = subprocess.run(
        [program("promtool"), *map(str, check)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(eq=False)
class Prometheus:
    """Its HTTP API, and the processes that it watches."""

    client: httpx.Client
    child: subprocess.Popen[bytes]

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = self.client.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        return list(answer.json()["data"]["result"])

    def has_value(self, expression: str) -> bool:
        return any(not math.isnan(float(series["value"][1])) for series in self.query(expression))

    def fired(self) -> dict[str, int]:
        """By name, how many alerts of it have fired so far."""
        ever = 'count by (alertname) (last_over_time(ALERTS{alertstate="firing"}[10m]))'
        return {s["metric"]["alertname"]: int(s["value"][1]) for s in self.query(ever)}


@pytest.fixture
def prometheus(tmp_path: Path, server: Process) -> Iterator[Prometheus]:
    """deploy/'s own config, which asks this server every second."""
    folder = tmp_path / "prometheus"
    folder.mkdir()
    (folder / "alerts.yml").write_text(in_seconds(RULES.read_text(encoding="utf-8")))
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [server.url.split("//")[1]]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
    watching = Prometheus(client, child)

    def ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return client.get("/-/ready").status_code == 200
        return False

    assert eventually(ready, 60), (folder / "log").read_text()
    yield watching
    client.close()
    child.terminate()
    child.wait(30)


@pytest.fixture
def server(tmp_path: Path, tiny_bert: Path) -> Iterator[Process]:
    program("prometheus")
    process = start(
        tmp_path,
        module="tests.faulty",
        model=str(tiny_bert),
        adapter_memory_bytes=RESIDENT * 8192,
        max_queue_tokens=100,
        drain_delay=60,
    )
    yield process
    process.kill()


@dataclass(eq=False)
class Clients:
    """Threads that each send something again and again, until they are told to stop."""

    url: str
    stopped: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def embed(self, adapter: str, inputs: Any = IDS) -> int:
        params = {"adapter": adapter}
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.post(
                f"{self.url}/embed", params=params, json={"inputs": inputs}, timeout=60
            )
            return answer.status_code
        return 0

    def again(self, *adapters: str, inputs: Any = IDS) -> None:
        def run() -> None:
            while not self.stopped.is_set():
                for adapter in adapters:
                    self.embed(adapter, inputs)
                    time.sleep(0.1)

        self.once(run)

    def once(self, run: Callable[[], object]) -> None:
        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(60)


@pytest.fixture
def clients(server: Process) -> Iterator[Clients]:
    made = Clients(server.url)
    yield made
    made.stop()


def with_another_version(
    client: httpx.Client, name: str, one: Path, two: Path, **query: Any
) -> str:
    """The digest of a version that is held beside the one that is served."""
    put(client, name, one)
    return str(put(client, name, two, stage="true", **query)["version"])


def fill_the_queue(clients: Clients) -> None:
    """Both of the model's threads are kept, 90 of 100 tokens wait, and what then comes is refused."""
    for _ in range(2):
        clients.once(lambda: clients.embed("base", [faulty.SLOW]))
        time.sleep(0.5)
    for i in range(2):
        clients.once(lambda i=i: clients.embed("base", [[2, *[7 + i] * 43, 3]]))  # type: ignore[misc]
    time.sleep(0.5)
    for i in range(4):
        clients.once(lambda i=i: clients.embed("base", [[2, *[9 + i] * 43, 3]]))  # type: ignore[misc]
    time.sleep(faulty.SLOW_S)


def refuse_uploads(client: httpx.Client, folder: Path) -> None:
    golden = json.dumps({"input": "good", "embedding": [1.0] * 32}).encode()
    files = files_of(folder) | {"golden.jsonl": ("golden.jsonl", golden)}
    for _ in range(3):
        assert client.put("/adapters/wrong", files=files).status_code == 422


def too_large_for_a_token(base: Path, folder: Path) -> Path:
    """An adapter whose answers are NaN, and only for texts with TOKEN."""
    make_adapter(base, folder, 0, r=1, target_modules=["query", "word_embeddings"])
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    rows = next(tensor for name, tensor in tensors.items() if "lora_embedding_A" in name)
    rows.zero_()[:, TOKEN] = 3e38
    save_file(tensors, file)
    return folder


@pytest.mark.slow
def test_every_alert_fires_once_it_should_and_not_before_and_every_panel_has_a_value(
    server: Process,
    prometheus: Prometheus,
    clients: Clients,
    tiny_bert: Path,
    tmp_path: Path,
) -> None:
    client = server.client
    folders = [make_adapter(tiny_bert, tmp_path / f"f{i}", i, scale=4) for i in range(14)]
    canary = with_another_version(client, "canary", folders[0], folders[1])
    alike = with_another_version(client, "shadow", folders[2], folders[2], normalize="false")
    other = str(put(client, "shadow", folders[3], stage="true")["version"])
    body = {"version": canary, "percent": 50}
    client.post("/adapters/canary/canary", json=body).raise_for_status()
    client.post("/adapters/shadow/shadow", json={"version": alike}).raise_for_status()
    clients.again("canary", "shadow", "base")
    time.sleep(7 * MINUTE_S)  # longer than any of them waits before it fires
    assert set(prometheus.fired()) <= ON_A_BUSY_MACHINE

    fill_the_queue(clients)
    refuse_uploads(client, folders[13])
    names = [f"t{i}" for i in range(RESIDENT + 1)]
    for name, folder in zip(names, folders[4:], strict=False):
        put(client, name, folder)
    version = client.get("/adapters/t0").json()["version"]
    weights = tmp_path / "store" / "versions" / version / "adapter_model.safetensors"
    weights.write_bytes(b"nothing")
    clients.again("canary", inputs=[faulty.CRASH])
    nan = with_another_version(
        client, "nan", folders[0], too_large_for_a_token(tiny_bert, tmp_path / "nan")
    )
    body = {"version": nan, "percent": 50}
    client.post("/adapters/nan/canary", json=body).raise_for_status()
    clients.again("nan", inputs=[[2, TOKEN, 3]])
    client.post("/adapters/shadow/shadow", json={"version": other}).raise_for_status()
    clients.again(*names)
    assert eventually(lambda: set(prometheus.fired()) >= MISBEHAVED, 90), MISBEHAVED - set(
        prometheus.fired()
    )
    assert set(prometheus.fired()) - ON_A_BUSY_MACHINE == MISBEHAVED
    assert {prometheus.fired()[name] for name in MISBEHAVED} == {1}

    expressions = [*dashboard_expressions(), *(without_thresholds(r["expr"]) for r in rules())]
    empty = [e for e in expressions if "_gpu_" not in e and not prometheus.has_value(e)]
    assert empty == []

    clients.stop()
    server.child.terminate()
    assert eventually(lambda: "BertLoraNotReady" in prometheus.fired(), 30)
    server.kill()
    assert eventually(lambda: "BertLoraDown" in prometheus.fired(), 30)
    assert set(prometheus.fired()) - ON_A_BUSY_MACHINE == MISBEHAVED | AT_ITS_END
