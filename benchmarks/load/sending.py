"""Sends a load open-loop: each request leaves when it is due, whether or not others came back.

Latencies are to be counted from the moment a request was due, so that neither a slow server nor a
slow generator hides in them (no coordinated omission). bench.py makes figures of the outcomes.
"""

from __future__ import annotations

import asyncio
import resource
import select
import selectors
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from benchmarks.load.arrivals import Arrival, Load, arrivals, request

TIMEOUT, DISCONNECTED, UNSENT = "timeout", "connection failed", "not sent"
MOST_OPEN = 4096  # a seventh of the ports that a Linux client has for one address
SPARE_FILES = 64  # of the process's limit: its own files, beside the connections
IDLE_S = 3  # uvicorn hangs up after 5: a request sent just then would count as a failure
TELL_EVERY_S = 0.2
UNTOLD_RETRY_S = 1.0  # a 429 that does not say when
REACH_S = 5.0
SAID_LENGTH = 200


class Unreachable(Exception):
    """Nothing listens there, with the reason."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an arrival; seconds since the start.

    status: HTTP's, or TIMEOUT, DISCONNECTED, UNSENT. timing: the answer's Server-Timing.
    """

    due_s: float
    sent_s: float
    done_s: float
    adapter: str
    status: str
    timing: str = ""
    retried: bool = False

    @property
    def ok(self) -> bool:
        """A 2xx."""
        return self.status.startswith("2")


@dataclass(frozen=True)
class Progress:
    """How far a load is. at_s: since the start. open: sent and not yet answered."""

    at_s: float
    done: int
    open: int
    failed: int


@dataclass(eq=False)
class Run:
    """A load being sent. said: what the first answer of each failing status was."""

    load: Load
    session: aiohttp.ClientSession
    start_s: float
    most_open: int
    open: int = 0
    failed: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)

    def now_s(self) -> float:
        """Seconds since the start."""
        return asyncio.get_running_loop().time() - self.start_s

    def progress(self) -> Progress:
        """For the bar."""
        return Progress(self.now_s(), len(self.outcomes), self.open, self.failed)


def send(load: Load, tell: Callable[[Progress], None]) -> Run:
    """Send the load and wait for every answer, each at most its timeout. Raises Unreachable."""
    with asyncio.Runner(loop_factory=_loop) as runner:
        return runner.run(_send(load, tell))


def retry_after_s(headers: Mapping[str, str]) -> float:
    """How long a 429 asks to wait; a date, which is not read, or nothing: one second."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit_s)
        except (KeyError, ValueError):
            continue
    return UNTOLD_RETRY_S


async def _send(load: Load, tell: Callable[[Progress], None]) -> Run:
    await _reach(load)
    todo = arrivals(load)
    own = {name: value.strip() for name, _, value in (h.partition(":") for h in load.headers)}
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S, ttl_dns_cache=None)
    async with aiohttp.ClientSession(
        connector=connector,
        headers={"Content-Type": "application/json", **own},
        timeout=aiohttp.ClientTimeout(total=load.timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("Accept-Encoding",),  # nothing to unpack: it is our own CPU time
    ) as session:
        run = Run(load, session, asyncio.get_running_loop().time(), _most_open())
        telling = asyncio.create_task(_keep_telling(run, tell))
        try:
            async with asyncio.TaskGroup() as asking:
                for arrival in todo:
                    # Also where it is late already: without a turn, none of the others would leave.
                    await asyncio.sleep(max(0.0, arrival.due_s - run.now_s()))
                    asking.create_task(_ask(run, arrival))
        finally:
            telling.cancel()
            tell(run.progress())
    return run


async def _reach(load: Load) -> None:
    parts = urlsplit(load.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    opening = asyncio.open_connection(parts.hostname, port)
    try:
        _, writer = await asyncio.wait_for(opening, min(load.timeout_s, REACH_S))
    except (OSError, TimeoutError) as error:
        raise Unreachable(f"cannot reach {load.url}: {str(error) or 'no answer'}") from None
    writer.close()
    await writer.wait_closed()


async def _keep_telling(run: Run, tell: Callable[[Progress], None]) -> None:
    while True:
        tell(run.progress())
        await asyncio.sleep(TELL_EVERY_S)


async def _ask(run: Run, arrival: Arrival) -> None:
    """One arrival, with its retry, to its outcome."""
    load, sent_s = run.load, run.now_s()
    url, body = request(load, arrival)
    status, headers = await _post(run, url, body)
    retried = load.retry and status == "429"
    if retried:
        await asyncio.sleep(min(retry_after_s(headers), load.timeout_s))
        status, headers = await _post(run, url, body)
    timing = headers.get("Server-Timing", "")
    outcome = Outcome(arrival.due_s, sent_s, run.now_s(), arrival.adapter, status, timing, retried)
    run.failed += not outcome.ok
    run.outcomes.append(outcome)


async def _post(run: Run, url: str, body: bytes) -> tuple[str, Mapping[str, str]]:
    """(status, headers); a failure to get any is a status, too."""
    if run.open >= run.most_open:
        return UNSENT, {}
    run.open += 1
    try:
        async with run.session.post(URL(url, encoded=True), data=body) as response:
            content = await response.read()
    except TimeoutError:
        return TIMEOUT, {}
    except (aiohttp.ClientError, OSError) as error:
        run.said.setdefault(DISCONNECTED, str(error) or type(error).__name__)
        return DISCONNECTED, {}
    finally:
        run.open -= 1
    if response.status >= 300:
        said = content[:SAID_LENGTH].decode(errors="replace")
        run.said.setdefault(str(response.status), said)
    return str(response.status), response.headers


def _most_open() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_OPEN
    return max(1, min(MOST_OPEN, soft - SPARE_FILES))


class _FineSelector(selectors.DefaultSelector):
    """Waits in microseconds. epoll rounds up to whole ms: requests left 0.8 ms late, now 0.2."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As the selector's own; its file descriptor is readable once any of its files is ready."""
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(_FineSelector())
