"""The server on Ray Serve: two replicas behind Ray's own HAProxy, one of which is killed under load,
with adapters from a folder and from a bucket.

Needs the extra `ray`, which `dev` has not: pip install -e '.[dev,ray]'. Run by make test-all.
"""

from __future__ import annotations

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
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from app.settings import Settings
from bert_lora.cli.deploy import RAY
from tests.catalog.seaweed import BUCKET, Seaweed
from tests.catalog.unreliable import Unreliable
from tests.deploy.load import ASKERS, Question, question, under_load
from tests.deploy.on_ray import START_S, each, needs_ray, on_ray, replicas
from tests.live import eventually
from tests.oracles import make_adapter, sentences
from tests.process import start
from tests.scale.fleet import TEXTS, Adapters, ask, check, made_adapters

DEPLOY = Path(__file__).parent.parent.parent / "deploy/ray"
KEY = "an-admin-key"


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


@pytest.fixture(scope="module")
def contents(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    return made_adapters(tiny_bert, tmp_path_factory.mktemp("contents"), 3)


@contextmanager
def on_a_bucket(
    folder: Path, seaweed: Seaweed, prefix: str, endpoint: str = "", **settings: Any
) -> Iterator[httpx.Client]:
    """Two replicas, which share a cache as well; a client of the ingress that may change adapters.

    endpoint: of a proxy before the bucket.
    """
    environ = seaweed.environ | ({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})
    at = {"store": f"s3://{BUCKET}/{prefix}", "cache_dir": folder / "cache"}
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        on_ray(folder, environ, replicas=2, admin_keys=KEY, **at, **settings) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60) as client,
    ):
        assert eventually(lambda: len(each(url)) == 2, START_S)
        yield client
    assert "Traceback" not in (folder / "log").read_text()


def versions(client: httpx.Client, name: str, contents: Adapters, **headers: str) -> set[str]:
    """What each replica answers with, and the ingress four times: the version, or else a status."""
    answers = [ask(client, name, **headers) for _ in range(4)]
    for address in each(str(client.base_url)).values():
        with httpx.Client(base_url=address, timeout=60) as replica:
            answers.append(ask(replica, name, **headers))
    return {check(a, contents) if a.is_success else str(a.status_code) for a in answers}


def questions_about(name: str, content: NDArray[np.float32]) -> list[Question]:
    bodies = [{"inputs": [text]} for text in TEXTS]
    vectors = zip(bodies, content, strict=True)
    return [Question(f"/embed?adapter={name}", body, [v.tolist()]) for body, v in vectors]


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_adapters_in_a_bucket_are_served_by_every_replica_on_ray_whichever_is_asked_killed_or_new(
    seaweed: Seaweed, tiny_bert: Path, contents: Adapters, tmp_path: Path
) -> None:
    prefix = seaweed.fresh_prefix()
    with on_a_bucket(tmp_path, seaweed, prefix, model=tiny_bert) as client:
        put_move_delete(client, contents)
        last = contents.put(client, "kept", 2).json()["version"]
        url = str(client.base_url)
        with under_load(url, questions_about("kept", contents.vectors[2]), tries=2) as load:
            assert eventually(lambda: load.asked > 300, 60)
            killed = min(each(url))
            os.kill(killed, signal.SIGKILL)
            assert eventually(lambda: len(each(url).keys() - {killed}) == 2, START_S)
            before = load.asked
            assert eventually(lambda: load.asked > before + 300, 60)
            assert load.again <= ASKERS  # what was in flight, and no more
        assert versions(client, "kept", contents) == {last}
    with on_a_bucket(tmp_path, seaweed, prefix, model=tiny_bert) as client:
        assert versions(client, "kept", contents) == {last}
        assert versions(client, "gone", contents) == {"404"}


def put_move_delete(client: httpx.Client, contents: Adapters) -> None:
    """A name gets a version, another one, and goes."""
    put = contents.put(client, "gone", 0)
    assert put.status_code == 201
    assert versions(client, "gone", contents) == {put.json()["version"]}
    another = contents.put(client, "gone", 1).json()
    at_least = {"X-Min-Revision": str(another["revision"])}
    assert versions(client, "gone", contents, **at_least) == {another["version"]}
    yet_another = contents.put(client, "gone", 2).json()["version"]
    assert eventually(lambda: versions(client, "gone", contents) == {yet_another})
    deleted = client.delete("/adapters/gone")
    assert deleted.status_code == 204
    at_least = {"X-Min-Revision": deleted.headers["X-Revision"]}
    assert versions(client, "gone", contents, **at_least) == {"404"}
    assert eventually(lambda: versions(client, "gone", contents) == {"404"})


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_replica_that_ray_starts_while_the_bucket_does_not_answer_is_asked_only_once_it_does(
    seaweed: Seaweed, tiny_bert: Path, contents: Adapters, tmp_path: Path
) -> None:
    """It knows no name, and would say 503; Ray asks no /readyz."""
    prefix, log = seaweed.fresh_prefix(), tmp_path / "log"
    with (
        Unreliable(seaweed.endpoint, BUCKET, prefix) as proxy,
        on_a_bucket(tmp_path, seaweed, prefix, proxy.endpoint, model=tiny_bert) as client,
    ):
        version, url = contents.put(client, "kept", 0).json()["version"], str(client.base_url)
        assert versions(client, "kept", contents) == {version}
        with proxy.refusing():
            killed = min(each(url))
            os.kill(killed, signal.SIGKILL)
            assert eventually(lambda: log.read_text().count("INFO app.main: serving") == 3, START_S)
            with under_load(url, questions_about("kept", contents.vectors[0])) as load:
                assert eventually(lambda: load.asked > 300, 60)
            assert contents.put(client, "kept", 1).status_code == 503
            verbose = client.get("/readyz?verbose=true")
            assert verbose.status_code == 200 and "does not answer" in verbose.json()["store"]
        assert eventually(lambda: len(each(url).keys() - {killed}) == 2, 30)
        assert versions(client, "kept", contents) == {version}


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
