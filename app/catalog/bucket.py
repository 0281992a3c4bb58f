"""A bucket of S3, GCS or Azure: objects read and written, small ones under short timeouts.

The one file that knows obstore, which reads its own variables (AWS_…, GOOGLE_…, AZURE_…). Knows
bytes and paths; knows no names and no versions.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore import exceptions as refused
from obstore.store import from_url

from app.catalog.disk_cache import cache_errors
from app.catalog.store import StoreUnavailable, StoreUnusable

if TYPE_CHECKING:
    from obstore import ObjectMeta

log = logging.getLogger(__name__)
DENIED = (refused.PermissionDeniedError, refused.UnauthenticatedError, PermissionError)
SILENT = (
    "the store does not answer: what is known of it is served, and nothing can be changed until it "
    "does; try again"
)
REFUSED = "the store refuses this server's credentials, or they do not allow this: see its log"
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")  # S3, Azure, GCS
SAID_AGAIN_S = 10.0
READ_S = 3.0  # a small object takes tens of milliseconds: who waits longer asks in vain
WRITE_S = 10.0  # where many replace one object at once, a bucket may let them wait in line
RETRY_S = 0.5  # a write that was refused or cut at once is tried again for so long
PART_S = 60.0  # for each part of a large one
PAUSE_S = 1.0  # after a read that nothing answered: then one call asks for all
SILENCE_S = 10.0  # of a bucket, while a part comes; one that goes has to be there by then
PART_BYTES = 5 << 20  # the least that S3 takes
PARTS = 2  # of one file at the same time: 1 MB/s will do
LISTED = 1_000  # what the stores give in one answer


class Conflict(Exception):
    """The object is not, or no longer, what the write was to replace."""


@dataclass(frozen=True, slots=True)
class Tag:
    """Which state of an object: some stores tell it by ETag, others by a version, too."""

    e_tag: str | None
    version: str | None

    def is_md5_of(self, body: bytes) -> bool:
        """Whether the ETag proves that the object holds just this; many buckets' are no MD5."""
        return (self.e_tag or "").strip('"') == hashlib.md5(body, usedforsecurity=False).hexdigest()

    def as_mode(self) -> Any:
        """As obstore takes it; a version of None must not be there."""
        return {k: v for k, v in asdict(self).items() if v is not None}


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a listing. modified: by the bucket's clock."""

    path: str
    tag: Tag
    size: int
    modified: datetime


class Bucket:
    """url: s3://bucket/prefix, gs://…, az://…. Every call blocks, may come from any thread, and
    raises StoreUnavailable: where nothing answers, a read after READ_S and a write after WRITE_S,
    and whatever comes then at once.
    """

    def __init__(self, url: str) -> None:
        """Asks for nothing. Raises StoreUnusable for what is no bucket."""
        self.url = url
        self._lock = threading.Lock()  # around the two times
        self._silent_until, self._said_at = 0.0, -math.inf
        try:
            _refuse_without_tls(url)
            self._read, self._write, self._large = (
                _store(url, timeout_s) for timeout_s in (READ_S, WRITE_S, PART_S)
            )
            self._once = _store(url, WRITE_S, retries=0)
        except (refused.BaseError, ValueError, TypeError) as error:
            raise StoreUnusable(
                f"STORE={url}: {_in_a_line(error)}; a bucket is s3://bucket/prefix, gs://… or az://…"
            ) from None

    def get(self, path: str) -> tuple[bytes, Tag] | None:
        """None: there is no such object."""
        return self.get_if_changed(path, None)

    def get_if_changed(self, path: str, seen: Tag | None) -> tuple[bytes, Tag] | None:
        """As get(); empty bytes and `seen` itself where it is still the object's."""
        options: Any = {"if_none_match": seen.e_tag} if seen and seen.e_tag else {}
        with self._errors():
            try:
                answer = obstore.get(self._read, path, options=options)
                return bytes(answer.bytes()), _tag(answer.meta)
            except FileNotFoundError:
                return None
            except refused.NotModifiedError:
                assert seen is not None
                return b"", seen

    def put(self, path: str, body: bytes, replaces: Tag | None) -> Tag:
        """Write the object if it still is `replaces`; None: if there is none.

        Raises Conflict: it was not written, and will not be. After StoreUnavailable it may have
        been written, or may be a little later.
        """
        unanswered, began = None, time.monotonic()
        while unanswered is None or time.monotonic() - began < RETRY_S:
            try:
                return self._put_once(path, body, replaces)
            except Conflict:
                if unanswered is None:
                    raise
                break  # with what was written unanswered, perhaps
            except StoreUnavailable as error:
                unanswered = error
                time.sleep(random.uniform(0.05, 0.2))
        raise unanswered

    def _put_once(self, path: str, body: bytes, replaces: Tag | None) -> Tag:
        mode: Any = "create" if replaces is None else replaces.as_mode()
        with self._errors():
            try:
                return _tag(obstore.put(self._once, path, body, mode=mode))
            except (refused.AlreadyExistsError, refused.PreconditionError, FileNotFoundError):
                raise Conflict(path) from None

    def overwrite(self, path: str, body: bytes) -> None:
        """Write the object, whatever is there."""
        with self._errors(asks=False):
            try:
                obstore.put(self._write, path, body)
            except FileNotFoundError as error:  # no bucket
                raise StoreUnavailable(self._in_words(error)) from None

    def delete(self, paths: list[str]) -> None:
        """Those that are not there are no error."""
        with self._errors(), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._large, paths)

    def list(self, prefix: str, after: str = "") -> Iterator[Listed]:
        """All objects below `prefix`, in the order of their paths; `after`: a path that need not
        exist. A page is asked for once the one before has been used.
        """
        offset = after or None
        pages = iter(obstore.list(self._read, prefix, offset=offset, chunk_size=LISTED))
        while True:
            with self._errors():
                page = next(pages, None)
            if page is None:
                return
            for meta in page:
                yield Listed(meta["path"], _tag(meta), meta["size"], meta["last_modified"])

    def refuse_missing(self) -> None:
        """Raises StoreUnavailable where there is no such bucket: its objects are not there, too."""
        with self._errors():
            next(iter(obstore.list(self._read, chunk_size=1)), None)

    def modified(self, path: str) -> datetime:
        """When an object that is there was written, by the bucket's clock."""
        with self._errors():
            return obstore.head(self._read, path)["last_modified"]

    def download(self, path: str, to: Path) -> None:
        """A whole file, part by part. Raises FileNotFoundError; StoreFull for this disk."""
        with cache_errors():
            to.write_bytes(b"")
        start, size = 0, 1
        while start < size:
            with self._errors(asks=False):
                part, size = self._part(path, start)
            with cache_errors(), to.open("ab") as file:
                file.write(part)
            start += PART_BYTES

    def _part(self, path: str, start: int) -> tuple[bytes, int]:
        """Of a file, from `start` on, and the whole's size."""
        options: Any = {"range": (start, start + PART_BYTES)}
        try:
            answer = obstore.get(self._large, path, options=options)
            return bytes(answer.bytes()), answer.meta["size"]
        except refused.GenericError:  # of an empty object no range can be had
            if start or obstore.head(self._read, path)["size"]:
                raise
            return b"", 0

    def upload(self, path: str, file: Path) -> None:
        """All or nothing."""
        with self._errors(asks=False):
            obstore.put(self._large, path, file, chunk_size=PART_BYTES, max_concurrency=PARTS)

    @contextmanager
    def _errors(self, *, asks: bool = True) -> Iterator[None]:
        """Raises StoreUnavailable for whatever obstore raises and nobody has expected.

        What it says is for the log: it has addresses in it. asks: whether the call stands for all:
        one that hangs silences the others. What is large, or written aside, stands for itself.
        """
        self._refuse_while_silent(asks)
        started = time.monotonic()
        try:
            yield
        except (Conflict, FileNotFoundError):  # is an answer, too
            self._silent_until = 0.0
            raise
        except (refused.BaseError, TimeoutError, ConnectionError, PermissionError) as error:
            if asks:
                hung = time.monotonic() - started >= READ_S
                self._silent_until = time.monotonic() + PAUSE_S if hung else 0.0
            self._say(error)
            raise StoreUnavailable(self._in_words(error)) from None
        self._silent_until = 0.0

    def _in_words(self, error: Exception) -> str:
        if isinstance(error, DENIED):
            return REFUSED
        missing = any(code in str(error) for code in NO_BUCKET)
        return f"no bucket is at {self.url}: make it, or mend STORE" if missing else SILENT

    def _refuse_while_silent(self, asks: bool) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._silent_until:
                raise StoreUnavailable(SILENT)
            if self._silent_until and asks:
                self._silent_until = now + READ_S + PAUSE_S  # this call asks for all

    def _say(self, error: Exception) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._said_at < SAID_AGAIN_S:
                return
            self._said_at = now
        what = {"store": self.url, "why": _in_a_line(error)}
        log.warning("the store %(store)s: %(why)s", what)


def _refuse_without_tls(url: str) -> None:
    """Raises ValueError where obstore would say "builder error" to each request."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    if url.startswith("s3") and endpoint.startswith("http://") and not _allows_http():
        raise ValueError(f"AWS_ENDPOINT_URL={endpoint} is without TLS: set AWS_ALLOW_HTTP=true")


def _allows_http() -> bool:
    return os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")


def _store(url: str, timeout_s: float, retries: int = 2) -> Any:
    scheme = url.partition("://")[0]
    return from_url(
        url,
        config={"checksum_algorithm": "sha256"} if scheme.startswith("s3") else None,
        client_options={
            "allow_http": _allows_http(),
            "connect_timeout": timedelta(seconds=min(2.0, timeout_s)),
            "timeout": timedelta(seconds=timeout_s),
            "read_timeout": timedelta(seconds=min(SILENCE_S, timeout_s)),
        },
        retry_config={
            "max_retries": retries,
            "retry_timeout": timedelta(seconds=min(SILENCE_S, timeout_s)),
            "backoff": {
                "init_backoff": timedelta(milliseconds=50),
                "max_backoff": timedelta(milliseconds=500),
            },
        },
    )


def _tag(meta: ObjectMeta | Any) -> Tag:
    return Tag(meta.get("e_tag"), meta.get("version"))


def _in_a_line(error: Exception) -> str:
    """The bucket's own words come behind the first line."""
    return " ".join(str(error).partition("Debug source:")[0].split())[:500]
