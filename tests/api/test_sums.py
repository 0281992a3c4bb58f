"""What is bounded one by one is bounded together, too: bodies, heads, quotas; and what is not
read.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import httpx
import openai
import pytest

from app.api.answer import header_list
from app.api.middleware.body_memory import BodyMemory, body_memory
from app.api.refusal import Refusal
from tests.adapters.made import raw_safetensors
from tests.conftest import Serve
from tests.live import LiveServer, eventually
from tests.oracles import put

MIB = 1 << 20


def test_many_large_bodies_leave_room_for_small_ones() -> None:
    memory, held = BodyMemory(64 * MIB), 0
    with contextlib.suppress(Refusal):
        for _ in range(1000):
            memory.take(0, 4 * MIB)
            held += 1
    assert held == 13
    for _ in range(1000):
        memory.take(0, 4096)
    assert memory.held <= 64 * MIB


def test_the_largest_body_fits_an_idle_server() -> None:
    for size in (1, 16 * MIB, 1 << 30):
        body_memory(size).take(0, size)


def test_a_body_that_comes_in_pieces_may_be_as_large_as_one_that_comes_whole() -> None:
    memory = BodyMemory(64 * MIB)
    for own in range(16):
        memory.take(own * MIB, MIB)
    with pytest.raises(Refusal):
        memory.take(16 * MIB, 1)
    assert memory.held == 16 * MIB


def test_a_small_cap_for_each_body_leaves_room_for_many() -> None:
    memory = body_memory(1024)
    for _ in range(1000):
        memory.take(0, 1024)
    assert memory.held == 1000 * 1024


def stalled(url: str, size: int) -> socket.socket:
    """A connection that has sent all of a body but its end."""
    host, port = url.removeprefix("http://").split(":")
    opened = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    opened.sendall(head.encode())
    with contextlib.suppress(OSError):  # refused meanwhile
        opened.sendall(b" " * (size - 1))
    return opened


def test_stalled_bodies_do_not_add_up(serve: Serve, tiny_bert: Path) -> None:
    server = serve(model=str(tiny_bert), max_body_bytes=8 * MIB)
    bodies: BodyMemory = next(
        m.kwargs["memory"] for m in server.app.user_middleware if "memory" in m.kwargs
    )
    opened = [stalled(server.url, 8 * MIB) for _ in range(24)]
    assert bodies.held <= bodies.most == 128 * MIB
    refused = 0
    for connection in opened:
        connection.settimeout(0.2)
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            refused += b"429" in connection.recv(64)
    assert refused > 5
    assert bodies.held <= 13 * 8 * MIB  # a part of the rest is left for smaller ones
    assert server.client.post("/embed", json={"inputs": "a " * 50_000}).status_code == 200
    for connection in opened:
        connection.close()
    assert eventually(lambda: bodies.held == 0)


def test_an_upload_is_on_the_disk_and_takes_nothing_of_the_bodies_memory(
    serve: Serve, tiny_bert: Path
) -> None:
    client = serve(model=str(tiny_bert), max_body_bytes=MIB).client
    size = 20 * MIB  # over a quarter of what all bodies may have
    header = {"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    answer = client.put("/adapters/x?alpha=1", content=raw_safetensors(header, bytes(size)))
    assert answer.status_code == 422, answer.text


def test_a_header_has_as_many_as_fit_and_then_a_count() -> None:
    assert header_list(["a", "b"]) == "a, b"
    stamps = [f"adapter{i}@{'0' * 64}" for i in range(1024)]
    line = header_list(stamps)
    assert len(line) < 2_000
    *shown, count = line.split(", and ")
    named = shown[0].split(", ")
    assert named == stamps[: len(named)]
    assert count == f"{1024 - len(named)} more"
    assert header_list(["x" * 3000]) == "1 of them"


def test_a_request_through_many_adapters_has_a_small_head_and_tells_all_in_its_body(
    served: httpx.Client, folders: dict[str, Path]
) -> None:
    names = [f"many{i:02}{'-' * 50}" for i in range(60)]
    for name in names:
        put(served, name, folders["a"])
    body = {"inputs": "good", "return_adapters": True}
    answer = served.post("/embed", params={"adapter": names}, json=body)
    assert sum(len(k) + len(v) + 4 for k, v in answer.headers.raw) < 4096
    assert " more" in answer.headers["x-adapter"]
    assert " more" in answer.headers["x-embedding-space"]
    told = answer.json()
    assert set(told["answer"]) == set(names)
    assert [a["adapter"] for a in told["adapters"]] == names
    one = served.get(f"/adapters/{names[0]}").json()
    assert told["adapters"][0] == {
        "adapter": names[0],
        "version": one["version"],
        "embedding_space": one["embedding_space"],
    }
    plain = served.post("/classify?adapter=c", json={"inputs": "good"}).json()
    both = served.post(
        "/classify?adapter=c", json={"inputs": "good", "return_adapters": True}
    ).json()
    assert both["answer"] == plain
    octets = {"Accept": "application/octet-stream"}
    assert served.post("/embed", json=body, headers=octets).status_code == 422


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/adapters/x"])
def test_a_coding_that_is_not_read_is_refused(served: httpx.Client, path: str) -> None:
    method = "PUT" if path.startswith("/adapters") else "POST"
    answer = served.request(method, path, content=b"x", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415
    assert "gzip" in answer.text
    for plain in ("identity", "Identity", ""):
        headers = {"Content-Encoding": plain}
        fine = served.post("/embed", json={"inputs": "a"}, headers=headers)
        assert fine.status_code == 200, plain


def test_a_query_of_endless_parameters_is_refused(served: httpx.Client) -> None:
    for count, refused in ((2_048, False), (2_049, True), (9_000, True)):
        answer = served.post(f"/embed?{'&'.join(['a'] * count)}", json={"inputs": "a"})
        assert ("over 2,048 parameters" in answer.json()["error"]) is refused
        assert answer.json()["code"] == "malformed" or not refused


def test_a_refused_request_keeps_no_quota(served: httpx.Client, folders: dict[str, Path]) -> None:
    put(served, "scarce", folders["a"], tokens_per_s=5)
    wrong = {"X-Priority": "urgent"}
    for _ in range(3):
        answer = served.post("/embed?adapter=scarce", json={"inputs": "a b c d"}, headers=wrong)
        assert answer.status_code == 422
    assert served.post("/embed?adapter=scarce", json={"inputs": "a b c d"}).status_code == 200
    assert served.post("/embed?adapter=scarce", json={"inputs": "a"}).status_code == 429


def test_foreign_token_ids_are_refused_below_v1(tiny_server: LiveServer) -> None:
    client = openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="-", max_retries=0)
    base = client.models.list().data[0].id
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model=base, input=[[40, 41], [42]])
    own = client.embeddings.create(model=base, input=[[2, 7, 3]])
    assert len(own.data) == 1
