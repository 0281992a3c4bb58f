"""What a load on a server consists of: who asks for what, when, and in whose words.

Arrivals are a Poisson process, as those of many users who don't know of each other. Knows nothing
of connections or answers: sending.py does.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never
from urllib.parse import quote

import numpy as np
import orjson

Api = Literal["ours", "tei", "openai", "classify"]
PATHS: dict[Api, str] = {
    "ours": "/embed",
    "tei": "/embed",
    "openai": "/v1/embeddings",
    "classify": "/classify",
}
BASE = "base"
ADDRESS = r"https?://(\[[0-9a-fA-F:.]+\]|[^\s/:?#\[\]]+)(:\d{1,5})?(/[^\s?#]*)?"

TEXTS, SHORTEST, LONGEST = 4096, 8, 63  # as in benchmarks/forward.py
# Each is one token in BERT's own vocabulary, so that words and tokens are as many.
WORDS = (
    "the of and to in a is that for it was as with be by on not he his but at are this have from "
    "or had one all were they which you would there her been their has will an more when who if "
    "no out so said what up its about into than them can only other new some time could these two "
    "may first then do any like my now over such our man me even most made after also did many "
    "off before must well back through years where much your way down should because long each "
    "just state those people too mr how little good world make very year still see own work men "
    "day get here old between both life being under three never know same last another while us "
    "card money bank film house water school city night hand order price letter question music"
)


class LoadRefused(Exception):
    """A load that cannot be sent, with the reason."""


@dataclass(frozen=True)
class Load:
    """What is sent where. rate: requests a second. adapters: one at random each; `base`: none.

    inputs: texts of one request. headers: `Name: value`. warmup_s: sent before `seconds`, and not
    counted. timeout_s: of one attempt. retry: a 429 is sent again once, after the time it names.
    Raises LoadRefused.
    """

    url: str
    api: Api
    rate: float
    seconds: float
    texts: Sequence[str]
    adapters: Sequence[str] = (BASE,)
    model: str | None = None
    inputs: int = 1
    headers: Sequence[str] = ()
    warmup_s: float = 0.0
    timeout_s: float = 30.0
    retry: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(ADDRESS, self.url):
            raise LoadRefused(f"{self.url} is no address: http://127.0.0.1:8080 would be one")
        if not self.texts:
            raise LoadRefused("there is no text to send")
        if self.api == "tei" and set(self.adapters) != {BASE}:
            raise LoadRefused("text-embeddings-inference has no adapters: leave --adapter out")
        for header in self.headers:
            if not re.fullmatch(r"[\w-]+:.*", header):
                raise LoadRefused(f"the header {header!r} is not 'Name: value'")

    @property
    def endpoint(self) -> str:
        """Where to POST, before any query."""
        return self.url.rstrip("/") + PATHS[self.api]


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to be. due_s: since the start. texts: which of the load's."""

    due_s: float
    adapter: str
    texts: list[int]


def arrivals(load: Load) -> list[Arrival]:
    """The same for the same seed. A Poisson process is a Poisson number of uniform moments."""
    rng = np.random.default_rng(load.seed)
    total_s = load.warmup_s + load.seconds
    count = int(rng.poisson(load.rate * total_s))
    due = np.sort(rng.uniform(0, total_s, count)).tolist()
    adapters = rng.integers(len(load.adapters), size=count).tolist()
    texts = rng.integers(len(load.texts), size=(count, load.inputs)).tolist()
    return [
        Arrival(at, load.adapters[a], chosen)
        for at, a, chosen in zip(due, adapters, texts, strict=True)
    ]


def made_texts(seed: int) -> list[str]:
    """Random words, from 8 to 63 of them a text, evenly."""
    rng, words = random.Random(seed), WORDS.split()
    return [" ".join(rng.choices(words, k=rng.randint(SHORTEST, LONGEST))) for _ in range(TEXTS)]


def request(load: Load, arrival: Arrival) -> tuple[str, bytes]:
    """(address, body) in the words of the load's API."""
    texts, adapter = [load.texts[i] for i in arrival.texts], arrival.adapter
    url = load.endpoint
    body: dict[str, Any] = {"inputs": texts}
    match load.api:
        case "openai":
            model = load.model or BASE if adapter == BASE else adapter
            body = {"model": model, "input": texts}
        case "ours" | "classify" | "tei":
            if adapter != BASE:
                url += f"?adapter={quote(adapter, safe='@')}"
        case _:
            assert_never(load.api)
    return url, orjson.dumps(body)
