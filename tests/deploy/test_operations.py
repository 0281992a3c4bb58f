"""docs/operations.md: its blocks are run as they stand, against servers that are at work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from app.settings import Settings
from tests.conftest import Serve
from tests.live import eventually
from tests.oracles import make_adapter
from tests.process import Process, free_port, start

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
NAMES = 12  # that are put again and again
# Every 100 KB: else the copy would be over before anything has changed.
SLOW_TAR = "tar() { command tar --checkpoint=10 --checkpoint-action=exec='sleep 0.3' \"$@\"; }\n"
QUESTION = {"inputs": ["how is my card"]}


def block(name: str) -> str:
    (found,) = re.findall(rf"```{name}\n(.*?)```", TEXT, re.DOTALL)
    return str(found)


def bash(script: str, folder: Path) -> str:
    command = ["bash", "-c", f"set -euo pipefail\n{script}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass
class Writer:
    """Puts new versions of the same names, and deletes one in between, until it is told to stop."""

    client: httpx.Client
    weights: bytes
    acknowledged: dict[str, list[str]] = field(default_factory=dict)  # versions by name
    over: threading.Event = field(default_factory=threading.Event)
    error: list[BaseException] = field(default_factory=list)

    def put(self, name: str, alpha: int) -> None:
        answer = self.client.put(f"/adapters/{name}?alpha={alpha}", content=self.weights)
        answer.raise_for_status()
        self.acknowledged.setdefault(name, []).append(answer.json()["version"])

    def run(self) -> None:
        try:
            for n in range(1, 100_000):
                if self.over.is_set():
                    return
                self.put(f"a{n % NAMES}", n)
                if n % 5 == 0:
                    self.client.put(f"/adapters/gone?alpha={n}", content=self.weights)
                    self.client.delete("/adapters/gone").raise_for_status()
        except BaseException as error:
            self.error.append(error)


@contextmanager
def writing(server: Process, weights: bytes) -> Iterator[Writer]:
    writer = Writer(server.client, weights)
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        yield writer
    finally:
        writer.over.set()
        thread.join(60)
    assert not writer.error


@contextmanager
def started(folder: Path, **settings: Any) -> Iterator[Process]:
    folder.mkdir(exist_ok=True)
    server = start(folder, **settings)
    try:
        yield server
    finally:
        server.kill()


def vector(client: httpx.Client, adapter: str) -> Any:
    answer = client.post("/embed", params={"adapter": adapter}, json=QUESTION)
    answer.raise_for_status()
    return np.array(answer.json())


@pytest.mark.slow
def test_a_backup_of_a_live_store_has_every_adapter_that_was_acknowledged_before_it(
    tmp_path: Path, tiny_bert: Path
) -> None:
    """While names are put, replaced and deleted all the time."""
    weights = make_adapter(tiny_bert, tmp_path / "adapter", 0) / "adapter_model.safetensors"
    with started(tmp_path / "old", store=tmp_path / "data", model=tiny_bert) as old:
        with writing(old, weights.read_bytes()) as writer:
            assert eventually(lambda: len(writer.acknowledged.get(f"a{NAMES - 1}", [])) > 2, 60)
            before = {name: len(versions) for name, versions in writer.acknowledged.items()}
            bash(SLOW_TAR + block("bash backup"), tmp_path)
            after = {name: len(versions) for name, versions in writer.acknowledged.items()}
        assert sum(after.values()) > sum(before.values()), "nothing was put during the backup"
        bash(block("bash restore"), tmp_path)
        with started(tmp_path / "new", store=tmp_path / "restored", model=tiny_bert) as new:
            assert new.client.get("/readyz").json()["broken"] == {}
            for name, count in before.items():
                version = new.client.get(f"/adapters/{name}").json()["version"]
                assert version in writer.acknowledged[name][count - 1 :]
                same = vector(old.client, f"{name}@{version}")
                np.testing.assert_array_equal(vector(new.client, name), same)


def test_the_blocks_against_a_running_server_work_as_they_stand(
    serve: Serve, tiny_bert: Path, tmp_path: Path
) -> None:
    server = serve(model=str(tiny_bert))
    weights = make_adapter(tiny_bert, tmp_path / "adapter", 0) / "adapter_model.safetensors"
    versions = [
        server.client.put(f"/adapters/mine?alpha={n}", content=weights.read_bytes()).json()[
            "version"
        ]
        for n in (8, 16)
    ]
    for name in ("bash compare", "bash rollback"):
        script = 'curl() { command curl --fail-with-body -w "\\n" "$@"; }\n' + block(name)
        script = script.replace("localhost:8080", server.url.removeprefix("http://"))
        for line in bash(script.replace("NAME", "mine"), tmp_path).splitlines():
            json.loads(line)
    assert server.client.get("/adapters/mine").json()["version"] == versions[0]


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")
def test_behind_this_nginx_uploads_and_requests_come_through(
    tmp_path: Path, tiny_bert: Path
) -> None:
    server = start(tmp_path, model=tiny_bert, admin_keys="secret")
    port, config = free_port(), tmp_path / "nginx.conf"
    site = block("nginx").replace("127.0.0.1:8080", server.url.removeprefix("http://"))
    site = site.replace("listen 80;", f"listen 127.0.0.1:{port};")
    paths = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""  # else its workers may not write to tmp_path
    config.write_text(f"{user}events {{}}\nhttp {{\naccess_log off;\n{paths}{site}}}\n")
    command = [str(NGINX), "-c", str(config), "-e", str(tmp_path / "error.log")]
    command += ["-g", f"daemon off; pid {tmp_path}/nginx.pid;"]
    nginx = subprocess.Popen(command)
    key = {"Authorization": "Bearer secret"}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=key) as client:
            assert eventually(lambda: _answers(client))
            folder = make_adapter(tiny_bert, tmp_path / "adapter", 0)
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            files["README.md"] = b"x" * (20 << 20)  # more than any other body may have
            put = client.put("/adapters/mine", files=files)
            assert put.status_code == 201, put.text
            through, direct = (vector(c, "mine") for c in (client, _with(server.client, key)))
            np.testing.assert_array_equal(through, direct)
            large = client.post("/embed", json={"inputs": ["a " * 40_000] * 16, "truncate": True})
            assert large.status_code == 200
            many = {"inputs": ["a"], "adapters": ["mine"], "return_adapters": True}
            assert client.post("/embed", json=many).json()["adapters"][0]["adapter"] == "mine"
    finally:
        nginx.terminate()
        nginx.wait(10)
        server.kill()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _with(client: httpx.Client, headers: dict[str, str]) -> httpx.Client:
    client.headers.update(headers)
    return client


def test_nginx_closes_an_idle_connection_before_the_server_does() -> None:
    (nginx_s,) = re.findall(r"keepalive_timeout (\d+)s;", block("nginx"))
    assert int(nginx_s) < uvicorn.Config("app").timeout_keep_alive


def test_nginxs_limits_are_the_servers() -> None:
    for mib, setting in re.findall(r"client_max_body_size (\d+)m; +# BERT_LORA_(\w+)", TEXT):
        assert int(mib) << 20 == getattr(Settings(), setting.lower())


def test_every_setting_that_is_named_exists() -> None:
    named = set(re.findall(r"BERT_LORA_([A-Z0-9_]+)", TEXT)) - {"PORT"}
    assert len(named) > 8
    assert {name.lower() for name in named} <= Settings.model_fields.keys()
