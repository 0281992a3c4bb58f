"""Servers that share a bucket, each behind a proxy of its own that can fail, and what PEFT says of
every adapter that they may serve.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from tests.catalog.seaweed import BUCKET, Seaweed
from tests.catalog.unreliable import Unreliable
from tests.oracles import FP32, files_of, make_adapter, peft_embeddings, sentences
from tests.process import Process, start

TEXTS = [text for text in sentences(40) if len(text) < 60][:4]  # the tiny base has 80 positions


@dataclass(eq=False)
class Adapters:
    """Some that differ, and their vectors [texts, H] by PEFT; by version once they were put."""

    folders: list[Path]
    vectors: list[NDArray[np.float32]]
    by_version: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def put(self, client: httpx.Client, name: str, i: int, **more: Any) -> httpx.Response:
        """The i-th one; what it answers is known by its version from here on."""
        answer = client.put(f"/adapters/{name}", files=files_of(self.folders[i]), **more)
        if answer.is_success:
            self.by_version[answer.json()["version"]] = self.vectors[i]
        return answer


def made_adapters(base: Path, folder: Path, count: int) -> Adapters:
    folders = [make_adapter(base, folder / f"a{i}", i, scale=20) for i in range(count)]
    return Adapters(folders, [peft_embeddings(base, one, TEXTS).numpy() for one in folders])


@dataclass(eq=False)
class Fleet:
    """Its servers, and the proxy between each and the bucket."""

    seaweed: Seaweed
    prefix: str
    folder: Path
    settings: dict[str, Any]
    servers: list[Process] = field(default_factory=list)
    proxies: list[Unreliable] = field(default_factory=list)

    def start(self, n: int, **more: Any) -> Process:
        """The n-th server: with the cache, the port and the proxy that it had before."""
        folder = self.folder / str(n)
        folder.mkdir(exist_ok=True)
        proxied = {**self.seaweed.environ, "AWS_ENDPOINT_URL": self.proxies[n].endpoint}
        os.environ.update(proxied)  # what start() hands on
        said = {
            "store": f"s3://{BUCKET}/{self.prefix}",
            "cache_dir": folder / "cache",
            "replicas": len(self.proxies),
            **self.settings,
            **more,
        }
        return start(folder, **said)

    def client(self, n: int) -> httpx.Client:
        return self.servers[n].client


@contextlib.contextmanager
def running(
    seaweed: Seaweed, folder: Path, count: int, prefix: str = "", **settings: Any
) -> Iterator[Fleet]:
    """So many servers on a bucket of their own, or on one that is there."""
    before = dict(os.environ)
    fleet = Fleet(seaweed, prefix or seaweed.fresh_prefix(), folder, settings)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        for _ in range(count):
            proxy = Unreliable(seaweed.endpoint, BUCKET, fleet.prefix)
            fleet.proxies.append(stack.enter_context(proxy))
        for n in range(count):
            fleet.servers.append(fleet.start(n))
        stack.callback(lambda: [server.kill() for server in fleet.servers])
        yield fleet


def ask(client: httpx.Client, name: str, text: int = 0, **headers: str) -> httpx.Response:
    """A text's vector through the adapter."""
    body = {"inputs": [TEXTS[text]]}
    return client.post("/embed", params={"adapter": name}, json=body, headers=headers)


def version_in(answer: httpx.Response) -> str:
    """The one that answered."""
    return answer.headers["X-Adapter"].partition("@")[2]


def check(answer: httpx.Response, adapters: Adapters, text: int = 0) -> str:
    """The answer is PEFT's for the version that it names, which is returned."""
    assert answer.status_code == 200, answer.text
    version = version_in(answer)
    np.testing.assert_allclose(answer.json()[0], adapters.by_version[version][text], **FP32)
    return version
