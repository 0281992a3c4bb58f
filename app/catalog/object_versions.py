"""A bucket's versions: their files under a nonce, and one manifest each that says which nonce.

    versions/<sha256>                 the manifest: where the files are, and the query's options
    files/<sha256>/<nonce>/<file>     written before the manifest, and never again
    reports/<sha256>                  what was measured

A version is there once its manifest says so. A commit of one that is there writes its manifest
anew, so that a collector who has seen the old one removes nothing. A removed version's manifest
stays, with fewer than LIVE_BYTES bytes. Knows bytes; knows no names.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path

import orjson

from app.adapters.files import ADAPTER_FILES
from app.catalog.bucket import LISTED, Bucket, Conflict, Listed, Tag
from app.catalog.object_names import UNREADABLE
from app.catalog.pointer import digest_of
from app.catalog.store import Json, StoreUnavailable, VersionDamaged, content_version

log = logging.getLogger(__name__)
MANIFESTS, FILES, REPORTS = "versions/", "files/", "reports/"
LIVE_BYTES = 512
ORPHANED = timedelta(days=1)  # files without a manifest: their upload has broken off


@dataclass(frozen=True)
class Manifest:
    """at: the nonce below which the files are; None: the version was removed. touched: a nonce of
    the last commit, which makes it another object."""

    at: str | None
    files: tuple[str, ...] = ()
    options: Json | None = None
    touched: str = ""

    def to_bytes(self) -> bytes:
        """As its object has it."""
        body = json.dumps({**vars(self), "sha256": digest_of(vars(self))}).encode()
        return body if self.at is None else body.ljust(LIVE_BYTES)


class ObjectVersions:
    """Keeps nothing between calls; several threads may use it."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def manifest(self, version: str) -> tuple[Manifest, Tag | None]:
        """And its object's tag. Raises StoreUnavailable also for what cannot be read."""
        for _ in range(2):  # it may have changed on its way
            answer = self._bucket.get(MANIFESTS + version)
            if answer is None:
                return Manifest(None), None
            with contextlib.suppress(*UNREADABLE):
                raw = orjson.loads(answer[0])
                if raw.pop("sha256") != digest_of(raw):
                    continue
                _refuse_newer(version, raw["files"])
                files = tuple(raw["files"])
                return Manifest(raw["at"], files, raw["options"], raw["touched"]), answer[1]
        raise StoreUnavailable(f"{MANIFESTS}{version} in {self._bucket.url} cannot be read")

    def options(self, version: str) -> Json:
        """As store.Store.options."""
        manifest, _ = self.manifest(version)
        if manifest.at is None:
            raise VersionDamaged(version)
        return manifest.options or {}

    def place(self, version: str) -> str | None:
        """Where its files are, for a human; None: it is not there."""
        at = self.manifest(version)[0].at
        return at and f"{self._bucket.url.rstrip('/')}/{FILES}{version}/{at}"

    def download(self, version: str, folder: Path) -> Json:
        """Its files into the folder. Returns its options. Raises VersionDamaged where they are not
        what was committed; StoreFull.
        """
        manifest, _ = self.manifest(version)
        if manifest.at is None:
            raise VersionDamaged(version)
        try:
            for name in manifest.files:
                (folder / name).parent.mkdir(exist_ok=True)
                self._bucket.download(_path(version, manifest.at, name), folder / name)
        except FileNotFoundError:
            raise VersionDamaged(version) from None
        if content_version(folder, manifest.options or {}) != version:
            raise VersionDamaged(version)
        return manifest.options or {}

    def touch(self, version: str) -> bool:
        """A commit of what is there: no collector removes it within a grace. False: it is not."""
        while True:
            manifest, tag = self.manifest(version)
            if manifest.at is None:
                return False
            with contextlib.suppress(Conflict):
                self._write(version, manifest.at, manifest.files, manifest.options or {}, tag)
                return True

    def upload(self, folder: Path, version: str, options: Json, report: Json) -> None:
        """Make the folder's files the version, in the place of what is there."""
        at = secrets.token_hex(8)
        files = tuple(name for name in ADAPTER_FILES if (folder / name).exists())
        for name in files:
            self._bucket.upload(_path(version, at, name), folder / name)
        self.write_report(version, report)
        while True:
            _, tag = self.manifest(version)
            with contextlib.suppress(Conflict):
                self._write(version, at, files, options, tag)
                return

    def _write(
        self, version: str, at: str, files: tuple[str, ...], options: Json, tag: Tag | None
    ) -> None:
        """Raises Conflict; not where the object is what was to be written, after all."""
        after = Manifest(at, files, options, secrets.token_hex(8))
        try:
            self._bucket.put(MANIFESTS + version, after.to_bytes(), tag)
        except (Conflict, StoreUnavailable):
            if self.manifest(version)[0].touched != after.touched:
                raise

    def report(self, version: str) -> Json | None:
        """As store.Store.report."""
        with contextlib.suppress(StoreUnavailable, ValueError):
            answer = self._bucket.get(REPORTS + version)
            report = orjson.loads(answer[0]) if answer else None
            return report if isinstance(report, dict) else None
        return None

    def write_report(self, version: str, report: Json) -> None:
        """As store.Store.write_report."""
        self._bucket.overwrite(REPORTS + version, json.dumps(report).encode())

    def live(self) -> dict[str, Tag]:
        """Every version that is there, with its manifest's tag."""
        listed = self._bucket.list(MANIFESTS)
        return {_last(one): one.tag for one in listed if one.size >= LIVE_BYTES}

    def remove(self, version: str, seen: Tag) -> None:
        """Unless its manifest has been written since it was seen."""
        manifest, tag = self.manifest(version)
        if tag != seen or manifest.at is None:
            return
        with contextlib.suppress(Conflict):
            self._bucket.put(MANIFESTS + version, Manifest(None).to_bytes(), seen)
            files = [_path(version, manifest.at, name) for name in manifest.files]
            self._bucket.delete([*files, REPORTS + version])

    def remove_orphans(self, now: datetime) -> None:
        """Files that no manifest names, of uploads and removals that broke off long ago.

        now: by the bucket's clock. Every incarnation of a version stands beside the others, so only
        those with two, or without a manifest, are looked at.
        """
        live = self.live()
        for version, group in groupby(self._bucket.list(FILES), lambda one: one.path.split("/")[1]):
            files = list(group)
            places = {one.path.split("/")[2] for one in files}
            if version in live and len(places) == 1:
                continue
            at = self.manifest(version)[0].at
            old = [one for one in files if now - one.modified > ORPHANED]
            orphans = [one.path for one in old if one.path.split("/")[2] != at]
            for some in _pages(orphans):
                self._bucket.delete(some)


def _refuse_newer(version: str, files: list[str]) -> None:
    """Raises StoreUnavailable for files that this server does not read: nothing goes unread."""
    if unknown := set(files) - set(ADAPTER_FILES):
        raise StoreUnavailable(
            f"version {version} has {', '.join(sorted(unknown))}, which this server does not "
            "know: a newer one has stored it"
        )


def _path(version: str, at: str, name: str) -> str:
    return f"{FILES}{version}/{at}/{name}"


def _last(one: Listed) -> str:
    return one.path.rpartition("/")[2]


def _pages(paths: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(paths), LISTED):
        yield paths[start : start + LISTED]
