"""Uploads, bent at random: each is read or refused, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.test_adapter_routes import tarred, zipped
from tests.live import LiveServer, live_server
from tests.oracles import put

TEXTS = {"inputs": ["the good film", "my card is lost"]}
FINE = {200, 201, 413, 415, 422}


@pytest.fixture(scope="module")
def server(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("fuzz")
    running = live_server(
        model=str(tiny_bert),
        store=folder / "store",
        adapters_dir=folder / "none",
        max_adapter_bytes=1 << 20,
        keep_versions=2,
    )
    yield running
    running.stop()


@pytest.fixture(scope="module")
def bodies(folders: dict[str, Path]) -> list[bytes]:
    c = folders["c"]
    bare = (folders["a"] / "adapter_model.safetensors").read_bytes()
    return [tarred(c, "w"), tarred(c, "w:gz"), zipped(c), bare]


bends = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "double", "insert", "number"]),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def bent(body: bytes, how: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, what in how:
        at = int(where * len(body)) if where > 0.5 else int(where * min(len(body), 2000))
        if kind == "flip":
            body = body[:at] + what + body[at + len(what) :]
        elif kind == "cut":
            body = body[:at]
        elif kind == "double":
            body = body[:at] + body[at : at + 500] + body[at:]
        elif kind == "insert":
            body = body[:at] + what + body[at:]
        else:
            body = body[:at] + b"99999999999999999999" + body[at + 4 :]
    return body


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(which=st.integers(0, 3), how=bends, alpha=st.booleans())
def test_a_bent_upload_is_read_or_refused(
    server: LiveServer,
    bodies: list[bytes],
    which: int,
    how: list[tuple[str, float, bytes]],
    alpha: bool,
) -> None:
    query = {"alpha": "16"} if alpha else {}
    answer = server.client.put("/adapters/bent", content=bent(bodies[which], how), params=query)
    assert answer.status_code in FINE, answer.text
    assert answer.json() is not None
    store = server.app.state.serving.installer.store.root
    assert list((store / "tmp").iterdir()) == []


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.data(),
    values=st.sampled_from([None, -1, 0, 1e308, "", "x", [], {}, [[]], True, "*" * 999, {"a": 1}]),
)
def test_a_config_with_any_value_anywhere_is_read_or_refused(
    server: LiveServer, folders: dict[str, Path], data: st.DataObject, values: object
) -> None:
    config = json.loads((folders["c"] / "adapter_config.json").read_text())
    key = data.draw(st.sampled_from([*config, "unknown"]))
    weights = (folders["c"] / "adapter_model.safetensors").read_bytes()
    files = {
        "adapter_model.safetensors": weights,
        "adapter_config.json": json.dumps(config | {key: values}).encode(),
    }
    answer = server.client.put("/adapters/bent", files=files)
    assert answer.status_code in FINE, (key, values, answer.text)


def test_after_all_that_the_others_are_as_they_were(
    server: LiveServer, folders: dict[str, Path], bodies: list[bytes]
) -> None:
    put(server.client, "a", folders["a"])
    before = [
        server.client.post(f"/embed?adapter={name}", json=TEXTS).json() for name in ("a", "base")
    ]
    for body in bodies:
        for at in range(0, min(len(body), 4000), 97):
            server.client.put("/adapters/b", content=body[:at])
    after = [
        server.client.post(f"/embed?adapter={name}", json=TEXTS).json() for name in ("a", "base")
    ]
    assert after == before
    assert server.client.get("/info?verify=true").json()["base"]["intact"]
