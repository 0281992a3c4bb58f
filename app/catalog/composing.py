"""Several adapters composed into one that is kept: a new version of a name. Knows no HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import save_file

from app.adapters.changes import weight_changes
from app.adapters.combine import Way, combine
from app.adapters.files import WEIGHTS, place
from app.adapters.sums import CannotCompose, Term
from app.adapters.values import Adapter
from app.adapters.write import peft_files
from app.catalog.install import How, Installed, Installer
from app.catalog.load import COMPOSED
from app.catalog.open_store import receiving
from app.catalog.terms import Spelled
from app.model.encoder import Encoder

ROUNDING = 1e-7  # of a weight's own size


async def compose(
    installer: Installer,
    name: str,
    spelled: Sequence[Spelled],
    way: Way,
    how: How,
    at_least: Callable[[str], int] = lambda _: 0,
) -> Installed:
    """As a PUT of the files of the composed adapter; of what it was made stands in its warnings.
    at_least: of a name that is composed, as of Names.get.

    Raises UnknownAdapter, UnknownVersion, CannotCompose, and what Installer.install raises.
    """
    served = installer.registry.names.get(name)
    how.change.of(name, None if served is None else served.digest, None)
    installer.names.refuse_unreachable()
    terms, parts = [], []
    for term in spelled:
        adapter, _, prefix = term.name.partition("@")
        entry = await installer.names.get(adapter, at_least(adapter), prefix or None)
        version = await installer.fetcher.version(entry, prefix or None)
        terms.append(Term(term.name, version.adapter, term.weight))
        parts.append(f"{adapter}@{version.digest[:12]}:{term.weight:g}")
    async with receiving(installer.store) as tmp:
        encoder, folder = installer.loader.engine.encoder, tmp / "adapter"
        await asyncio.to_thread(_write, folder, terms, way, encoder, " + ".join(parts))
        return await installer.install(name, folder, None, how)


def _changes(adapter: Adapter, encoder: Encoder) -> bool:
    """Does any weight change by more than float32's rounding?"""
    return max(weight_changes(adapter, encoder.base).values(), default=0.0) > ROUNDING


def _write(folder: Path, terms: Sequence[Term], way: Way, encoder: Encoder, parts: str) -> None:
    """Combine, and write the folder that PEFT loads, with what was done in its metadata. Blocks."""
    adapter, done = combine(terms, way, encoder.base)
    moved = any(layer.shift is not None for layer in adapter.layers.values())
    if adapter.head is None and not moved and not _changes(adapter, encoder):
        raise CannotCompose("what comes of them leaves the base as it is, and has no head")
    tensors, files = peft_files(adapter, encoder.base, encoder.files.id)
    folder.mkdir()
    # One member: safetensors writes several in any order, and the version is a hash of the bytes.
    save_file(tensors, folder / WEIGHTS, {COMPOSED: f"{parts}: {done}"})
    for file, content in files.items():
        place(folder, file).write_text(json.dumps(content, indent=2), encoding="utf-8")
