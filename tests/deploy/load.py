"""Clients that ask without a pause, and compare every answer with the one that is known to be right."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from tests.oracles import FP32

ASKERS = 6
AGAIN_S = 0.5  # before a question is asked again, as clients do


@dataclass(frozen=True)
class Question:
    path: str
    body: dict[str, Any]
    right: Any  # the answer's JSON


def question(direct: httpx.Client, path: str, body: dict[str, Any]) -> Question:
    """Answered by a server itself."""
    answer = direct.post(path, json=body)
    answer.raise_for_status()
    return Question(path, body, answer.json())


@dataclass
class Load:
    """Asks the questions in turn, from several threads, until it is told to stop.

    tries: how often a question is asked that gets no answer.
    """

    url: str
    questions: Sequence[Question]
    tries: int = 1
    asked: int = 0
    again: int = 0
    wrong: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self, first: int) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            for n in range(first, 100_000):
                if self.over.is_set():
                    return
                self.ask(client, self.questions[n % len(self.questions)])

    def ask(self, client: httpx.Client, asked: Question) -> None:
        self.asked += 1
        for left in reversed(range(self.tries)):
            try:
                answer = client.post(asked.path, json=asked.body)
                answer.raise_for_status()
                compare(answer.json(), asked.right)
                return
            except httpx.HTTPError as error:
                self.again += 1
                if not left:
                    self.wrong.append(f"{asked.path}: {error}")
                    return
                time.sleep(AGAIN_S)
            except AssertionError as error:
                self.wrong.append(f"{asked.path}: {error}")
                return


def compare(answer: Any, right: Any) -> None:
    """Raises AssertionError."""
    ours, theirs = list(leaves(answer)), list(leaves(right))
    assert [v for v in ours if isinstance(v, str)] == [v for v in theirs if isinstance(v, str)]
    numbers = ([v for v in values if not isinstance(v, str)] for values in (ours, theirs))
    np.testing.assert_allclose(*numbers, **FP32)


def leaves(value: Any) -> Iterator[Any]:
    match value:
        case dict():
            for inner in value.values():
                yield from leaves(inner)
        case list():
            for inner in value:
                yield from leaves(inner)
        case _:
            yield value


@contextmanager
def under_load(url: str, questions: Sequence[Question], tries: int = 1) -> Iterator[Load]:
    """None may be lost, and no answer may be another."""
    load = Load(url, questions, tries)
    threads = [threading.Thread(target=load.run, args=(first,)) for first in range(ASKERS)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.over.set()
        for thread in threads:
            thread.join(60)
    assert not load.wrong, f"{len(load.wrong)} of {load.asked}: {load.wrong[:3]}"
