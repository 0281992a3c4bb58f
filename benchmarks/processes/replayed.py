"""Sends requests when they are due, or clients that ask again as soon as they are answered.

Latencies are counted from the moment a request was due. Knows no server of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import aiohttp
from yarl import URL


@dataclass(frozen=True)
class Request:
    """content: a JSON body; None: a GET."""

    url: str
    content: bytes | None = None


@dataclass(frozen=True)
class Answer:
    """Seconds from when it was due. status 0: none came."""

    seconds: float
    status: int


def replay(due: Iterable[tuple[float, Request]]) -> list[Answer]:
    """due: seconds since the start, in order."""
    return asyncio.run(_replay(due))


def closed_loop(asked: Callable[[], Request], clients: int, seconds: float) -> list[Answer]:
    """So many clients at the same time, each with one request after the other."""
    return asyncio.run(_closed_loop(asked, clients, seconds))


def failures(answers: Sequence[Answer]) -> int:
    return sum(answer.status != 200 for answer in answers)


async def _replay(due: Iterable[tuple[float, Request]]) -> list[Answer]:
    loop = asyncio.get_running_loop()
    async with _session() as session, asyncio.TaskGroup() as group:
        began, tasks = loop.time(), []
        for at, request in due:
            await asyncio.sleep(max(0.0, began + at - loop.time()))
            tasks.append(group.create_task(_ask(session, request, began + at)))
    return [task.result() for task in tasks]


async def _closed_loop(asked: Callable[[], Request], clients: int, seconds: float) -> list[Answer]:
    loop, answers = asyncio.get_running_loop(), list[Answer]()
    over = loop.time() + seconds

    async def client() -> None:
        while loop.time() < over:
            answers.append(await _ask(session, asked(), loop.time()))

    async with _session() as session:
        await asyncio.gather(*(client() for _ in range(clients)))
    return answers


def _session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3)  # uvicorn's are 5
    return aiohttp.ClientSession(connector=connector, headers={"Content-Type": "application/json"})


async def _ask(session: aiohttp.ClientSession, request: Request, due: float) -> Answer:
    method = "GET" if request.content is None else "POST"
    try:
        url = URL(request.url, encoded=True)
        async with session.request(method, url, data=request.content) as answer:
            await answer.read()
            status = answer.status
    except (aiohttp.ClientError, OSError):
        status = 0
    return Answer(asyncio.get_running_loop().time() - due, status)
