"""A full queue refuses, says when to come again, and keeps its word; priority is the client's to
say.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import httpx

from tests.conftest import Serve
from tests.live import LiveServer, eventually

MANY = {"inputs": ["where is my card"] * 40}


def held(server: LiveServer, release: threading.Event) -> None:
    """Keep the model's threads busy until the event is set."""
    engine = server.app.state.serving.runtime.engine
    for _ in engine._threads:
        engine.queue.put_call(lambda: release.wait(30))


async def at_once(url: str, bodies: list[dict[str, Any]], release: threading.Event) -> list[Any]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        asked = [asyncio.create_task(client.post("/embed", json=body)) for body in bodies]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        early = [task.result() for task in done]  # none is answered before the release
        release.set()
        later = []
        for refused in early:
            await asyncio.sleep(int(refused.headers["retry-after-ms"]) / 1000)
            body = refused.request.content
            again = await client.post("/embed", content=body, headers=refused.request.headers)
            later.append(again)
        return [early, await asyncio.gather(*asked), later]


def test_who_is_refused_is_told_when_to_come_again_and_is_let_in_then(
    serve: Serve, tiny_bert: Any
) -> None:
    server = serve(model=str(tiny_bert), max_queue_tokens=1000)
    release = threading.Event()
    held(server, release)
    bodies = [{"inputs": [f"{i} {text}" for text in MANY["inputs"]]} for i in range(8)]
    early, answers, later = asyncio.run(at_once(server.url, bodies, release))
    assert early
    assert {answer.status_code for answer in early} == {429}
    assert early[0].json()["code"] == "overloaded"
    assert {answer.status_code for answer in answers} == {200, 429}
    assert {answer.status_code for answer in later} == {200}


def test_the_priority_is_interactive_or_bulk(client: httpx.Client) -> None:
    body = {"inputs": "where is my card"}
    for priority in ("interactive", "bulk"):
        answer = client.post("/embed", json=body, headers={"X-Priority": priority})
        assert answer.status_code == 200
    answer = client.post("/embed", json=body, headers={"X-Priority": "urgent"})
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["field"] == "x-priority"


def counted(client: httpx.Client, status: int) -> float:
    line = f'bert_lora_requests_total{{adapter="",route="/embed",status="{status}"}} '
    text = client.get("/metrics").text
    return sum(float(row.removeprefix(line)) for row in text.splitlines() if row.startswith(line))


def test_a_client_that_leaves_while_load_is_shed_is_gone_and_no_fault(
    serve: Serve, tiny_bert: Any
) -> None:
    server = serve(model=str(tiny_bert), max_queue_tokens=200)
    release = threading.Event()
    held(server, release)
    threads = [threading.Thread(target=server.post, args=("/embed",), kwargs=MANY) for _ in "ab"]
    for thread in threads:
        thread.start()
    admission = server.app.state.serving.runtime.engine.admission
    assert eventually(lambda: admission.tokens > 200)
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(5):
        line = socket.create_connection((host, int(port)))
        line.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        time.sleep(0.05)
        line.close()
    assert eventually(lambda: counted(server.client, 499) >= 5)
    assert counted(server.client, 500) == 0
    release.set()
    for thread in threads:
        thread.join(30)
