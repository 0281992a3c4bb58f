"""A request's time ends its work, and never an answer that has begun. (Over HTTP: test_life_cycle.)"""

from __future__ import annotations

import asyncio
import time

from starlette.types import Message, Receive, Scope, Send

from app.api.access import Access, Matched
from app.api.middleware.deadline import Deadline


async def answered_by(begins_at_s: float) -> list[Message]:
    """What is sent where 0.1 s are given, the answer begins then and takes 0.2 s."""
    messages: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(begins_at_s)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.2)
        await send({"type": "http.response.body", "body": b"whole"})

    async def receive() -> Message:
        if messages or received:
            await asyncio.sleep(60)
        received.append(True)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    received: list[bool] = []
    state = {"began": time.perf_counter(), "matched": Matched("/x", access=Access(model=True))}
    scope = {"type": "http", "headers": [(b"x-request-timeout", b"0.1")], "state": state}
    await Deadline(app)(scope, receive, send)
    return messages


def test_an_answer_that_has_begun_is_sent_to_its_end() -> None:
    messages = asyncio.run(answered_by(0.0))
    assert [message.get("status") for message in messages] == [200, None]
    assert messages[-1]["body"] == b"whole"


def test_an_answer_that_has_not_begun_in_time_is_a_504() -> None:
    assert asyncio.run(answered_by(5.0))[0]["status"] == 504
