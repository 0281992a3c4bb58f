"""Canary and shadow: who answers, what is compared, how they end, what a restart leaves of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.conftest import Serve
from tests.live import LiveServer, eventually
from tests.oracles import make_adapter, put

TEXTS = {"inputs": ["the good film", "my card is lost"]}


@pytest.fixture
def two(tiny_bert: Path, tmp_path: Path) -> tuple[Path, Path]:
    return (
        make_adapter(tiny_bert, tmp_path / "one", 1, scale=4),
        make_adapter(tiny_bert, tmp_path / "two", 2, scale=4),
    )


@pytest.fixture
def versions(client: httpx.Client, two: tuple[Path, Path]) -> tuple[str, str]:
    """x is served by the first version and holds the second, staged."""
    client.delete("/adapters/x")
    first = put(client, "x", two[0])["version"]
    second = put(client, "x", two[1], stage="true")
    assert second["staged"]
    assert client.get("/adapters/x").json()["version"] == first
    return first, second["version"]


def answered_by(client: httpx.Client, headers: dict[str, str] | None = None) -> str:
    answer = client.post("/embed?adapter=x", json=TEXTS, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-adapter"].partition("@")[2]


def metric(client: httpx.Client, line: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith(line))


def test_a_canary_answers_its_share_with_its_own_answers(
    client: httpx.Client, versions: tuple[str, str]
) -> None:
    first, second = versions
    wanted = {v: client.post(f"/embed?adapter=x@{v}", json=TEXTS).json() for v in versions}
    assert wanted[first] != wanted[second]
    body = {"version": second[:12], "percent": 30}
    trial = client.post("/adapters/x/canary", json=body).json()["trial"]
    assert (trial["mode"], trial["version"], trial["percent"]) == ("canary", second, 30)
    seen: Counter[str] = Counter()
    for _ in range(200):
        answer = client.post("/embed?adapter=x", json=TEXTS)
        version = answer.headers["x-adapter"].partition("@")[2]
        assert answer.json() == wanted[version]
        seen[version] += 1
    assert 30 <= seen[second] <= 95  # of 200 draws at 30 %: five deviations either way
    counted = 'bert_lora_trial_requests_total{adapter="x",arm="canary",status="200"}'
    assert metric(client, counted) >= seen[second]
    assert client.post(f"/embed?adapter=x@{first}", json=TEXTS).json() == wanted[first]


def test_a_sticky_canary_meets_the_same_clients_and_keeps_them_as_it_grows(
    client: httpx.Client, versions: tuple[str, str]
) -> None:
    _, second = versions
    body = {"version": second, "percent": 25, "sticky_by": "x-user-id"}
    client.post("/adapters/x/canary", json=body)
    users = [{"x-user-id": f"user-{i}"} for i in range(60)]
    once = [answered_by(client, user) for user in users]
    assert [answered_by(client, user) for user in users] == once
    assert 0 < sum(v == second for v in once) < 60
    client.post("/adapters/x/canary", json={**body, "percent": 70})
    grown = [answered_by(client, user) for user in users]
    assert all(
        after == second for before, after in zip(once, grown, strict=True) if before == second
    )
    assert sum(v == second for v in grown) > sum(v == second for v in once)


def test_a_shadow_runs_and_is_compared_and_never_answers(
    client: httpx.Client, versions: tuple[str, str]
) -> None:
    first, second = versions
    client.post("/adapters/x/shadow", json={"version": second})
    for _ in range(20):
        assert answered_by(client) == first
    counted = 'bert_lora_shadow_total{adapter="x",result='
    for _ in range(100):
        if metric(client, counted) >= 20:
            break
    assert metric(client, counted + '"failed"') == 0
    assert metric(client, counted + '"different"') > 0
    assert metric(client, 'bert_lora_shadow_distance_sum{adapter="x"}') > 0


def test_who_is_deleted_leaves_no_trial_in_the_metrics(
    client: httpx.Client, versions: tuple[str, str]
) -> None:
    _, second = versions
    client.post("/adapters/x/shadow", json={"version": second}).raise_for_status()
    answered_by(client)
    assert eventually(lambda: metric(client, 'bert_lora_shadow_distance_count{adapter="x"}') > 0)
    client.post("/adapters/x/canary", json={"version": second, "percent": 100}).raise_for_status()
    answered_by(client)
    assert 'bert_lora_trial_requests_total{adapter="x"' in client.get("/metrics").text
    client.delete("/adapters/x").raise_for_status()
    assert 'adapter="x"' not in client.get("/metrics").text


def test_promote_and_abort_end_a_trial(client: httpx.Client, versions: tuple[str, str]) -> None:
    first, second = versions
    assert client.post("/adapters/x/promote").json()["error_type"] == "no_trial"
    client.post("/adapters/x/canary", json={"version": second, "percent": 100})
    assert answered_by(client) == second
    assert client.post("/adapters/x/abort").json()["trial"] is None
    assert answered_by(client) == first
    client.post("/adapters/x/canary", json={"version": second, "percent": 1})
    promoted = client.post("/adapters/x/promote").json()
    assert (promoted["version"], promoted["trial"]) == (second, None)
    assert answered_by(client) == second
    history = client.get("/adapters/x/versions").json()
    assert [(e["version"], e["how"], e["current"]) for e in history] == [
        (first, "put", False),
        (second, "stage", False),
        (second, "promote", True),
    ]
    assert client.post("/adapters/x/rollback").json()["version"] == first


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"version": "0" * 12, "percent": 5}, 404),
        ({"version": "first", "percent": 5}, 422),
        ({"version": "second", "percent": 0}, 422),
        ({"version": "second", "percent": 101}, 422),
        ({"version": "second", "percent": 5, "sticky_by": "a b"}, 422),
        ({"version": "second"}, 422),
    ],
)
def test_impossible_canaries_are_refused(
    client: httpx.Client, versions: tuple[str, str], body: dict[str, object], status: int
) -> None:
    named = {"first": versions[0], "second": versions[1]}
    body = {**body, "version": named.get(str(body["version"]), body["version"])}
    answer = client.post("/adapters/x/canary", json=body)
    assert answer.status_code == status, answer.text
    assert client.get("/adapters/x").json()["trial"] is None


def test_trials_survive_a_restart_and_deleting_ends_them(
    serve: Serve, tiny_bert: Path, two: tuple[Path, Path]
) -> None:
    first = serve(model=str(tiny_bert))
    put(first.client, "x", two[0])
    second = put(first.client, "x", two[1], stage="true")["version"]
    body = {"version": second, "percent": 100, "sticky_by": "client"}
    before = first.client.post("/adapters/x/canary", json=body).json()["trial"]
    first.stop()
    again: LiveServer = serve(model=str(tiny_bert))
    assert again.client.get("/adapters/x").json()["trial"] == before
    assert answered_by(again.client) == second
    again.client.delete("/adapters/x")
    put(again.client, "x", two[0])
    assert again.client.get("/adapters/x").json()["trial"] is None


def test_staging_needs_something_to_stand_beside(
    client: httpx.Client, two: tuple[Path, Path]
) -> None:
    client.delete("/adapters/x")
    body = (two[0] / "adapter_model.safetensors").read_bytes()
    answer = client.put("/adapters/x?stage=true&alpha=16", content=body)
    assert answer.status_code == 404
    assert client.get("/adapters/x").status_code == 404


def test_with_two_versions_kept_a_promotion_can_be_rolled_back(
    serve: Serve, tiny_bert: Path, two: tuple[Path, Path]
) -> None:
    client = serve(model=str(tiny_bert), keep_versions=2).client
    first = put(client, "x", two[0])["version"]
    second = put(client, "x", two[1], stage="true")["version"]
    put(client, "x", two[1], stage="true")
    put(client, "x", two[0], stage="true")  # what is served already
    client.post("/adapters/x/canary", json={"version": second, "percent": 50})
    client.post("/adapters/x/promote")
    assert client.post("/adapters/x/rollback").json()["version"] == first
    for _ in range(3):
        client.post("/adapters/x/rollback", json={"version": first})
    assert client.post(f"/embed?adapter=x@{second}", json=TEXTS).status_code == 200
    history = client.get("/adapters/x/versions").json()
    assert [e["current"] for e in history].count(True) == 1


def test_a_version_of_another_task_takes_no_part(
    serve: Serve, tiny_bert: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    client = serve(model=str(tiny_bert)).client
    headed = make_adapter(tiny_bert, tmp_path / "headed", 3, labels=3, scale=4)
    put(client, "x", two[0])
    second = put(client, "x", two[1], stage="true", tokens_per_s=5000)
    assert second["tokens_per_s"] == 5000
    other = put(client, "x", headed, stage="true")["version"]
    refused = client.post("/adapters/x/canary", json={"version": other, "percent": 50})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "adapter_rejected")
    body = {"version": second["version"], "percent": 50}
    assert client.post("/adapters/x/canary", json=body).json()["trial"]
    assert put(client, "x", headed)["trial"] is None  # the canary has no head, and is over


def test_a_canarys_failures_are_counted_as_its_own(
    client: httpx.Client, versions: tuple[str, str]
) -> None:
    body = {"version": versions[1], "percent": 100}
    client.post("/adapters/x/canary", json=body)
    line = 'bert_lora_trial_requests_total{adapter="x",arm="canary",status="422"}'
    before = metric(client, line)
    assert client.post("/classify?adapter=x", json=TEXTS).status_code == 422
    assert metric(client, line) == before + 1


def test_what_takes_no_parameters_refuses_them_and_does_nothing(
    client: httpx.Client, versions: tuple[str, str]
) -> None:
    for method, path in (
        ("DELETE", "/adapters/x?dry_run=true"),
        ("POST", "/adapters/x/promote?x=1"),
        ("GET", "/adapters/x?verbose=1"),
    ):
        assert client.request(method, path).status_code == 422
    assert client.get("/adapters/x").json()["version"] == versions[0]
