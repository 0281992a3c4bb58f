"""The server on Ray Serve: two replicas behind Ray's own HAProxy, one of which is killed under load.

Needs the extra `ray`, which `dev` has not: pip install -e '.[dev,ray]'. Run by make test-all.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml

from app.settings import Settings
from bert_lora.cli.deploy import RAY
from tests.deploy.load import ASKERS, Question, question, under_load
from tests.live import eventually
from tests.oracles import make_adapter, sentences
from tests.process import free_port, start

DEPLOY = Path(__file__).parent.parent.parent / "deploy/ray"
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not there: pip install '.[dev,ray]'"
)
START_S = 180


@pytest.fixture(scope="module")
def adapters(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    make_adapter(tiny_bert, folder / "vectors", 0, scale=20)
    make_adapter(tiny_bert, folder / "labels", 1, scale=20, labels=3)
    return folder


@pytest.fixture(scope="module")
def questions(
    tiny_bert: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Question]:
    """As the plain server answers them."""
    server = start(tmp_path_factory.mktemp("plain"), model=tiny_bert, adapters_dir=adapters)
    asked = [
        question(server.client, path, {"inputs": [text]})
        for text in sentences(6)
        for path in ("/embed", "/embed?adapter=vectors", "/classify?adapter=labels")
    ]
    server.kill()
    return asked


@contextmanager
def on_ray(folder: Path, **settings: Any) -> Iterator[str]:
    """The ingress' address."""
    port = free_port()
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("BERT_LORA_", "RAY_"))}
    environ |= {f"BERT_LORA_{k.upper()}": str(v) for k, v in {**settings, "port": port}.items()}
    command = [sys.executable, "-m", "bert_lora", "deploy", "ray"]
    with (folder / "log").open("wb") as out:
        child = subprocess.Popen(command, env=environ, stdout=out, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        assert eventually(lambda: ready(url) or child.poll() is not None, START_S)
        assert child.poll() is None, (folder / "log").read_text()
        yield url
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(60)


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def replicas(url: str) -> set[int]:
    """The processes of those that were started with this address."""
    mine = f"BERT_LORA_PORT={url.rpartition(':')[2]}\0".encode()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            known = (process / "cmdline").read_bytes().startswith(b"ray::ServeReplica")
            if known and mine in (process / "environ").read_bytes():
                found.add(int(process.name))
        except OSError:
            continue
    return found


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_ray_answers_are_the_plain_servers_and_a_second_try_saves_all_when_a_replica_is_killed(
    questions: list[Question], tiny_bert: Path, adapters: Path, tmp_path: Path
) -> None:
    """Ray's HAProxy drops some of what the replica had in flight, whatever it is told of retries."""
    with on_ray(tmp_path, replicas=2, model=tiny_bert, adapters_dir=adapters) as url:
        assert eventually(lambda: len(replicas(url)) == 2, START_S)
        with under_load(url, questions, tries=2) as load:
            assert eventually(lambda: load.asked > 300, 60)
            killed = min(replicas(url))
            os.kill(killed, signal.SIGKILL)
            before = load.asked
            assert eventually(lambda: load.asked > before + 300, 60)
            assert eventually(lambda: len(replicas(url) - {killed}) == 2, START_S)
            assert load.again <= ASKERS  # what was in flight, and no more
        change = httpx.put(f"{url}/adapters/mine", content=b"x")
        assert change.status_code == 403  # it would be in one replica only


@needs_ray
@pytest.mark.slow
def test_admin_keys_are_refused_on_ray_where_the_store_is_each_replicas_own() -> None:
    command = [sys.executable, "-m", "bert_lora", "deploy", "ray", "--admin-keys", "a"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "one of them only" in done.stderr


@needs_ray
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_replicas_are_wanted_by_how_full_their_queues_are() -> None:
    from app.ray_serve import FILL, by_queue

    def wanted(*fills: float) -> int:
        by_replica = dict(enumerate(fills))
        context = SimpleNamespace(aggregated_metrics={FILL: by_replica}, target_num_replicas=7)
        return by_queue(context)[0]  # type: ignore[arg-type]

    assert wanted(0.5, 0.5) == 2
    assert wanted(1.0, 0.6) == 4
    assert wanted(0.0, 0.1) == 1
    assert wanted() == 7  # nothing is known: as it is


@pytest.mark.parametrize("file", ["serve.yaml", "rayservice.yaml"])
def test_a_manifests_args_are_settings(file: str) -> None:
    made = yaml.safe_load((DEPLOY / file).read_text())
    if file == "rayservice.yaml":
        made = yaml.safe_load(made["spec"]["serveConfigV2"])
    (application,) = made["applications"]
    args = {k: v for k, v in application["args"].items() if k != "max_replicas"}
    assert Settings(**args).replicas == 2
    assert application["import_path"] == "app.ray_serve:application"


@needs_ray
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", ["serve.yaml", "rayservice.yaml"])
def test_a_manifest_is_what_ray_takes(file: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    made = yaml.safe_load((DEPLOY / file).read_text())
    if file == "rayservice.yaml":
        made = yaml.safe_load(made["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(made)


def test_every_pod_of_the_ray_cluster_has_the_variables_that_deploy_sets() -> None:
    cluster = yaml.safe_load((DEPLOY / "rayservice.yaml").read_text())["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        environ = {e["name"]: e["value"] for e in container["env"]}
        assert environ.items() >= RAY.items()
        assert group["template"]["spec"]["enableServiceLinks"] is False
