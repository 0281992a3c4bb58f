"""The log of a running server: JSON throughout, ten lines at a start, and nobody's text or key."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save
from starlette.routing import Mount

from app.api.access import access_of
from app.api.middleware.authenticate import who_may_change
from app.inference.caller import Key
from app.main import build
from app.settings import Settings
from tests import process
from tests.oracles import files_of

MARK = "Planted-MARK"
TEXT = f"{MARK} a text 'of' \"somebody\"\nelse"
PLACES = re.compile(r"\{[^}]+\}")  # of a name in a path
KEYS = {"admin": "S3cret-of-an-admin", "web": "S3cret-of-the-web"}


def lines(log: Path) -> list[dict[str, Any]]:
    """Every line of the log; fails where one is no JSON object."""
    parsed = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(isinstance(line, dict) for line in parsed)
    return parsed


@pytest.fixture
def ending(tmp_path: Path) -> Iterator[list[process.Process]]:
    """Processes to be ended."""
    running: list[process.Process] = []
    yield running
    for each in running:
        if each.child.poll() is None:
            each.end()


def run_curl(line: str, **environ: str) -> Any:
    """What it prints, pasted into a shell; an httpx client plays curl where there is none."""
    command = line[line.index("curl ") :]
    ran = subprocess.run(
        ["sh", "-c", command], env=environ, capture_output=True, text=True, check=True
    )
    return json.loads(ran.stdout)


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_start_is_ten_lines_and_ends_in_a_request_that_works(
    minilm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: list[process.Process],
    form: str,
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    server = process.start(tmp_path, log_format=form, adapters_dir="adapters")
    ending.append(server)
    text = server.log.read_text().splitlines()
    assert len(text) <= 10
    messages = [line["message"] for line in lines(server.log)] if form == "json" else text
    listening, docs, curl, who = messages[-4:]
    assert listening.endswith(f"listening on {server.url}")
    assert docs.endswith(f"{server.url}/docs")
    assert httpx.get(docs.split()[-1]).status_code == 200
    assert "everybody on this machine" in who
    (vector,) = run_curl(curl)
    name = server.client.get("/adapters").json()[0]["name"]
    body = {"inputs": "I love this film."}
    assert server.client.post(f"/embed?adapter={name}", json=body).json() == [vector]


@pytest.mark.slow
def test_with_keys_the_request_takes_one_from_the_environment(
    tiny_bert: Path, tmp_path: Path, ending: list[process.Process]
) -> None:
    server = process.start(
        tmp_path,
        model=tiny_bert,
        log_format="json",
        host="0.0.0.0",
        api_keys=KEYS["web"],
        admin_keys=KEYS["admin"],
    )
    ending.append(server)
    *_, curl, who = (line["message"] for line in lines(server.log))
    assert len(run_curl(curl, KEY=KEYS["web"])[0]) == 32
    assert who == "adapters are changed by whoever has an admin key (admin-key-1)"


def test_who_may_change_adapters_is_said_as_it_is() -> None:
    admin, web = (Key(name, b"", admin=name == "boss") for name in ("boss", "web"))
    assert "boss" in who_may_change([web, admin], "0.0.0.0")
    assert who_may_change([web], "127.0.0.1").startswith("nobody")
    assert who_may_change([], "0.0.0.0").startswith("nobody")
    assert who_may_change([], "localhost").startswith("everybody on this machine")


@pytest.mark.parametrize(
    ("wrong", "code"),
    [({"model": "./nowhere"}, 1), ({"max_body_bytes": "many"}, 2), ({"prot": "1"}, 2)],
)
def test_a_start_that_is_refused_is_one_json_line(
    tmp_path: Path, wrong: dict[str, str], code: int
) -> None:
    server = process.start(tmp_path, wait=False, log_format="json", **wrong)
    assert server.child.wait(60) == code
    server.client.close()
    (line,) = lines(server.log)
    assert (line["level"], line["message"][:12]) == ("critical", "cannot start")
    assert line["reason"]


def test_what_nobody_has_caught_and_what_libraries_warn_of_is_json_too() -> None:
    code = """
import threading, warnings
from app.logs import set_up
set_up("json")
warnings.warn("old\\nways", DeprecationWarning)
thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()
class Odd:
    def __del__(self): raise ValueError("at its end")
Odd()
import transformers, huggingface_hub
set_up("json")
transformers.logging.get_logger("transformers.x").warning("a library's line")
huggingface_hub.utils.logging.get_logger("huggingface_hub.x").error("another's")
{}["a text"]
"""
    command = [sys.executable, "-W", "default", "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    parsed = [json.loads(line) for line in ran.stderr.splitlines()]
    told = " ".join(line["message"] + line.get("exception", "") for line in parsed)
    for wanted in (
        "old\nways",
        "ZeroDivisionError",
        "at its end",
        "a library's line",
        "another's",
        "KeyError: …",
    ):
        assert wanted in told
    assert "a text" not in told


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def uploads() -> Iterator[dict[str, Any]]:
    """Refused ones, each with marks in another place."""
    weights = save({f"{MARK}.lora_A.weight": torch.ones(2, 2)}, {MARK: TEXT, "labels": TEXT})
    folder = {"adapter_model.safetensors": weights}
    yield {"content": weights}
    yield {"content": weights[:50]}
    yield {"content": save({f"{MARK}.lora_A.weight": torch.full((2, 2), torch.nan)})}
    yield {"content": tar({f"{MARK}/x.txt": b"x", f"../{MARK}": b"y"})}
    for config in (
        {"peft_type": MARK},
        {"peft_type": "LORA", "r": MARK},
        {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [MARK]},
        {"peft_type": "LORA", "r": 2, "base_model_name_or_path": f"{MARK}/roberta-{MARK}"},
        {"peft_type": "LORA", "r": 2, "auto_mapping": {"parent_library": f"transformers.{MARK}.{MARK}"}},
    ):  # fmt: skip
        yield {"content": tar({**folder, "adapter_config.json": json.dumps(config).encode()})}
    yield {"content": tar({**folder, "config.json": json.dumps({"model_type": MARK}).encode()})}
    yield {"content": tar({**folder, "modules.json": json.dumps([{"type": MARK}]).encode()})}
    yield {"content": tar({**folder, "golden.jsonl": json.dumps({MARK: TEXT}).encode()})}
    yield {"content": tar({f"{MARK}/adapter_model.safetensors": weights, f"b/{MARK}.safetensors": weights})}  # fmt: skip
    yield {"files": {MARK: (MARK, weights)}}
    yield {"data": {MARK: TEXT}, "files": {"x": ("x", b"x")}}
    yield {"json": {"source": f"/{MARK}"}}
    yield {"json": {"source": f"hf:{MARK}/x@{MARK}"}}
    yield {"json": {MARK: TEXT}}
    yield {"content": b"x", "headers": {"Content-Type": f"text/{MARK}"}}


def bodies() -> Iterator[dict[str, Any]]:
    """For any route that takes JSON."""
    texts: dict[str, Any] = {
        "inputs": TEXT,
        "input": TEXT,
        "query": TEXT,
        "texts": [TEXT],
        "prompt": TEXT,
        "prompt_name": TEXT,
        "model": TEXT,
        "labels": [TEXT],
        "version": TEXT,
        "percent": TEXT,
        "sticky_by": TEXT,
        "adapters": [TEXT],
        "problem_type": TEXT,
        "source": TEXT,
        "lora_name": TEXT,
        "lora_path": TEXT,
        "tokens": TEXT,
        "prompt_ids": [TEXT],
    }
    yield {"json": texts}
    for name, value in texts.items():
        yield {"json": {name: value}}
    yield {"json": {"inputs": TEXT, "adapters": [MARK.lower()]}}
    yield {"json": {"inputs": [TEXT] * 3, "prompt": TEXT}}
    yield {"json": {"inputs": [TEXT, ""]}}
    yield {"json": {"inputs": TEXT, MARK: TEXT}}
    yield {"json": {"input": TEXT, "model": "base"}}
    yield {"json": {"query": TEXT, "texts": [TEXT], "truncate": TEXT}}
    yield {"json": {"labels": [TEXT, TEXT]}}
    yield {"json": {"lora_name": "up", "lora_path": f"/{MARK}"}}
    yield {"json": {"lora_name": MARK, "lora_path": f"{MARK}/x"}}
    yield {"json": {"version": MARK}}
    yield {"json": TEXT}
    yield {"content": f'{{"inputs": "{MARK}'}
    yield {"content": f'{{"inputs": "{MARK} \\ud83d"}}'}
    yield {"content": TEXT, "headers": {"Content-Type": f"text/{MARK}"}}


ODD_HEADERS = [
    {
        "User-Agent": MARK,
        "Cookie": MARK,
        "Referer": MARK,
        "X-Forwarded-For": MARK,
        "Origin": f"http://{MARK}",
        "Accept": MARK,
    },
    *(
        {name: MARK}
        for name in (
            "X-Priority",
            "X-Request-Timeout",
            "If-Match",
            "If-None-Match",
            "Content-Encoding",
            "Host",
        )
    ),
]


def plant(client: httpx.Client, method: str, template: str) -> None:
    """Ask the route with marks and keys wherever a client can put them."""

    def ask(name: str = "a", key: str | None = KEYS["admin"], **more: Any) -> None:
        auth = {"Authorization": f"Bearer {key}"} if key else {}
        headers = auth | more.pop("headers", {})
        with contextlib.suppress(httpx.TransportError):  # refused before it has sent all
            client.request(method, PLACES.sub(lambda _: name, template), headers=headers, **more)

    for name in ("a", f"{MARK}%0aINFO forged", KEYS["web"]):
        for key in (KEYS["admin"], KEYS["web"], f"{MARK}-key", None):
            ask(name, key, params={MARK: TEXT, "adapter": TEXT, "key": KEYS["admin"]})
            ask(name, key, params={"adapter": MARK, "labels": TEXT}, json={"inputs": KEYS["web"]})
    for odd in ODD_HEADERS:
        ask(headers=odd, json={"inputs": TEXT})
    if method in ("POST", "PUT"):
        for body in bodies():
            headers = {"Content-Type": "application/json", **body.pop("headers", {})}
            ask(headers=headers, **body)


@pytest.mark.slow
def test_nobodys_text_and_no_key_is_in_the_log(
    tiny_bert: Path, folders: dict[str, Path], tmp_path: Path, ending: list[process.Process]
) -> None:
    server = process.start(
        tmp_path,
        model=tiny_bert,
        log_format="json",
        access_log=True,
        api_keys=KEYS["web"],
        admin_keys=KEYS["admin"],
        allow_hub=True,
        source_dirs=tmp_path,
    )
    ending.append(server)
    client, by = server.client, {"Authorization": f"Bearer {KEYS['admin']}"}
    routes = [
        (method, route.path_format, access_of(route).changes)
        for route in build(Settings()).routes
        if not isinstance(route, Mount)
        and (
            not route.path.startswith("/a/") or route.path.endswith("/embed")
        )  # the same once more
        for method in route.methods
    ]
    client.put("/adapters/a", files=files_of(folders["c"]), headers=by)
    for method, template, changes in routes:
        plant(client, method, template)
        if changes:
            client.put("/adapters/a", files=files_of(folders["c"]), headers=by)
        client.request(method, f"/{MARK}{template}", headers=by)
    for upload in uploads():
        headers = by | upload.pop("headers", {})
        with contextlib.suppress(httpx.TransportError):
            assert 400 <= client.put("/adapters/up", headers=headers, **upload).status_code < 500
    with contextlib.suppress(httpx.TransportError):
        client.put(f"/adapters/up?path={MARK}", content=tar({"x": b"x"}), headers=by)
        client.request(MARK.upper(), "/embed", headers=by)
    server.end()
    logged = server.log.read_text()
    parsed = lines(server.log)
    refused = {line["error_type"] for line in parsed if line["logger"] == "app.changes"}
    assert {
        "adapter_rejected",
        "validation",
        "unauthenticated",
        "forbidden",
        "malformed",
    } <= refused
    assert {line["route"] for line in parsed if line["logger"] == "app.access"} >= {
        path for _, path, _ in routes
    }
    for secret in (MARK, MARK.lower(), MARK.upper(), *KEYS.values()):
        place = logged.find(secret)
        assert place < 0, logged[max(0, place - 500) : place + 100]
    audit = "".join(path.read_text() for path in (tmp_path / "store" / "audit").iterdir())
    assert not any(secret in audit for secret in (MARK, *KEYS.values()))


@pytest.mark.slow
def test_the_access_log_has_a_line_for_each_request(
    tiny_bert: Path, folders: dict[str, Path], tmp_path: Path, ending: list[process.Process]
) -> None:
    server = process.start(tmp_path, model=tiny_bert, log_format="json", access_log=True)
    ending.append(server)
    client = server.client
    client.put("/adapters/a", files=files_of(folders["a"])).raise_for_status()
    client.post(
        "/embed?adapter=a", json={"inputs": [[2, 7, 3], [2, 3]]}, headers={"X-Request-Id": "mine"}
    )
    client.post("/embed?adapter=nobody", json={"inputs": "x"})
    client.get("/nowhere")
    server.end()
    put, ran, refused, lost = [
        {**line, "ms": line["ms"] > 0}
        for line in lines(server.log)
        if line["logger"] == "app.access" and line["route"] != "/readyz"
    ]
    assert (put["method"], put["route"], put["adapters"]) == ("PUT", "/adapters/{name}", "a")
    assert {
        name: ran[name] for name in ("request_id", "route", "adapters", "status", "tokens")
    } == {
        "request_id": "mine",
        "route": "/embed",
        "adapters": "a",
        "status": 200,
        "tokens": 5,
    }
    assert (ran["error_type"], ran["by"], ran["address"], ran["ms"]) == (None, None, "127.0.0.1", True)  # fmt: skip
    assert (refused["status"], refused["error_type"]) == (404, "adapter_not_found")
    assert (lost["route"], lost["status"], lost["error_type"]) == ("unknown", 404, "not_found")
