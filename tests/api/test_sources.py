"""PUT {"source": …}: folders below the allowed ones, links resolved; the hub only if switched
on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import serving_hub
from tests.live import LiveServer, live_server


@pytest.fixture(scope="module")
def allowed(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    shutil.copytree(folders["a"], root / "allowed" / "a")
    shutil.copytree(folders["b"], root / "secret")
    (root / "allowed" / "inside").symlink_to(root / "allowed" / "a")
    (root / "allowed" / "outside").symlink_to(root / "secret")
    (root / "allowed" / "mixed").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (root / "allowed" / "mixed" / name).symlink_to(root / "secret" / name)
    shutil.copytree(folders["b"], root / "allowed" / "pipe")
    (root / "allowed" / "pipe" / "config.json").unlink(missing_ok=True)
    os.mkfifo(root / "allowed" / "pipe" / "config.json")
    (root / "allowed-not").symlink_to(root / "secret")
    return root / "allowed"


@pytest.fixture(scope="module")
def server(
    tiny_bert: Path, allowed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("server")
    running = live_server(
        model=str(tiny_bert),
        store=folder / "store",
        adapters_dir=folder / "none",
        source_dirs=f"{folder}, {allowed}",
    )
    yield running
    running.stop()


def put(server: LiveServer, source: object) -> tuple[int, str]:
    answer = server.client.put("/adapters/x", json={"source": source})
    return answer.status_code, answer.json().get("error_type", "")


def test_a_folder_below_an_allowed_one_is_taken(server: LiveServer, allowed: Path) -> None:
    assert put(server, str(allowed / "a"))[0] == 201
    assert put(server, str(allowed / "inside"))[0] == 200
    assert put(server, str(allowed / "pipe"))[0] == 200  # the pipe is no file of it


def test_whatever_leads_elsewhere_is_forbidden(server: LiveServer, allowed: Path) -> None:
    for source in (
        allowed / "outside",
        allowed / "mixed",
        allowed / ".." / "secret",
        allowed.parent / "secret",
        allowed.parent / "allowed-not",
        "/etc",
        "/nowhere",
        "relative",
        "~",
        "",
        "hf:org/repo",
    ):
        assert put(server, str(source)) == (403, "forbidden"), source


def test_what_is_no_source_is_refused(server: LiveServer, allowed: Path) -> None:
    for source in (str(allowed / "nothing"), str(allowed / "a" / "adapter_config.json"), 5, None):
        assert put(server, source) == (422, "adapter_rejected"), source
    assert put(server, f"{allowed}/a\0b") == (422, "adapter_rejected")
    assert put(server, f"{allowed}/{'a' * 5000}") == (422, "adapter_rejected")
    bodies = {
        b"[]": 422,
        b"{}": 422,
        b'{"source": "/x", "more": 1}': 422,
        b"": 400,
        b"\xff": 400,
        b"[" * 100_000: 400,
    }
    for body, status in bodies.items():
        headers = {"Content-Type": "application/json"}
        answer = server.client.put("/adapters/x", content=body, headers=headers)
        assert answer.status_code == status, body


def test_without_settings_no_source_is_taken(tiny_server: LiveServer, allowed: Path) -> None:
    assert put(tiny_server, str(allowed / "a")) == (403, "forbidden")
    assert put(tiny_server, "hf:org/repo@main") == (403, "forbidden")


FETCH = """
import sys
from pathlib import Path
from app.adapters.receiving.source import Sources, fetch_source
source, folder, cap = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
folder.mkdir(parents=True)
try:
    fetch_source(source, Sources(hub=True), folder, cap)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def hub(folders: dict[str, Path]) -> Iterator[str]:
    with serving_hub("org/adapter", folders["a"]) as url:
        yield url


@pytest.mark.parametrize(
    ("source", "cap", "told"),
    [
        ("hf:org/adapter@main", 1 << 30, ""),
        ("hf:org/adapter@main", 100, "UploadTooLarge"),
        ("hf:org/nothing@main", 1 << 30, "AdapterRejected the hub did not give"),
        ("hf:../../etc", 1 << 30, "AdapterRejected"),
    ],
)
def test_a_repository_of_the_hub_is_taken_where_that_is_switched_on(
    hub: str, folders: dict[str, Path], tmp_path: Path, source: str, cap: int, told: str
) -> None:
    target = tmp_path / "upload" / "adapter"
    ran = subprocess.run(
        [sys.executable, "-c", FETCH, source, str(target), str(cap)],
        env={**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.startswith(told)
    if not told:
        assert ran.stdout == ""
        weights = (target / "adapter_model.safetensors").read_bytes()
        assert weights == (folders["a"] / "adapter_model.safetensors").read_bytes()
        assert [p.name for p in target.parent.iterdir()] == ["adapter"]
