"""Merging on demand: a copy of the layers that an adapter changes, beside the base, and away again.

Others go on with the base. Knows versions and memory; knows no files and no HTTP.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from app.catalog.change import Change
from app.catalog.install import Installer
from app.catalog.registry import Name
from app.model.lora import merge_lora, merged_bytes


class MergeMemoryFull(Exception):
    """The merged copy would go over MERGE_MEMORY_BYTES."""


class MergeNotShared(Exception):
    """A merged copy is one server's, and requests go to many."""


async def merge(installer: Installer, name: str, change: Change) -> Name:
    """Make the adapter's own copy of the layers it changes; others go on with the base.

    Raises UnknownAdapter, MergeMemoryFull, MergeNotShared.
    """
    async with installer.changing:
        served = await installer.names.get(name)
        change.of(name, served.digest, served.digest)
        _refuse_shared(installer)
        version = await installer.fetcher.ready(served)
        rescales = any(lora.rescales for lora in version.adapter.layers.values())
        if version.merged_bytes or not rescales:
            return served
        wrappers = installer.loader.engine.encoder.wrappers
        size = merged_bytes(wrappers, version.adapter)
        others = installer.registry.merged_bytes
        if others + size > installer.merge_memory_bytes:
            raise MergeMemoryFull(
                f"merging takes {size:,} bytes beside the {others:,} of other merged adapters, "
                f"over MERGE_MEMORY_BYTES={installer.merge_memory_bytes:,}: unmerge another first"
            )
        layers = await asyncio.to_thread(merge_lora, wrappers, version.adapter, version.layers)
        installer.registry.merged[name] = replace(version, layers=layers, merged_bytes=size)
        change.done = True
        return served


async def unmerge(installer: Installer, name: str, change: Change) -> Name:
    """Drop the merged copy; batches that are running keep the one that they started with.

    Raises UnknownAdapter.
    """
    async with installer.changing:
        served = await installer.names.get(name)
        change.of(name, served.digest, served.digest)
        change.done = installer.registry.merged.pop(name, None) is not None
        return served


def _refuse_shared(installer: Installer) -> None:
    if installer.store.shared:
        raise MergeNotShared(
            "a merged copy is in one server's memory, and with a store in a bucket requests go to "
            "any server: an adapter is served unmerged, with the same answers"
        )
