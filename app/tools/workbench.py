"""A base and what loads adapters on it, without a server: what the command-line tools work with."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from app.adapters.receiving.archive import unpack
from app.adapters.receiving.copying import copy_adapter
from app.adapters.recipe import Options
from app.adapters.refusals import AdapterRejected
from app.catalog.load import Loader, load_version, make_loader, options_to_json
from app.catalog.store import content_version
from app.catalog.stored_version import StoredVersion
from app.engine.engine import Engine
from app.engine.tokenizer import load_tokenizer
from app.model.base_files import find_base
from app.model.encoder import Encoder
from app.model.load_encoder import load_encoder

BATCH_TOKENS = 1024
NO_CAP = 1 << 40  # it is the user's own file, on the user's own disk


@dataclass(frozen=True, eq=False)
class Workbench:
    """The base on the CPU in float32, and its loader."""

    encoder: Encoder
    loader: Loader

    def load(self, folder: Path, options: Options | None = None) -> StoredVersion:
        """An adapter's folder, read and measured as an upload is. Raises AdapterRejected."""
        query = options_to_json(options or Options())
        digest = content_version(folder, query)
        return asyncio.run(load_version(self.loader, folder, digest, query, allow_noop=False))


@contextmanager
def workbench(model: str | None, revision: str | None = None) -> Iterator[Workbench]:
    """Load the base. Raises BaseRefused, EmbeddedBaseMissing."""
    files = find_base(model, revision)
    encoder = load_encoder(files, torch.device("cpu"), torch.float32)
    tokenizer = load_tokenizer(files.folder, encoder.vocabulary, encoder.type_vocabulary)
    engine = Engine(encoder, BATCH_TOKENS, BATCH_TOKENS * 64)
    engine.start()
    try:
        yield Workbench(encoder, make_loader(engine, tokenizer))
    finally:
        engine.stop()


@contextmanager
def adapter_folder(source: Path) -> Iterator[Path]:
    """A folder of the adapter's files alone, from a folder, an archive or a bare safetensors file.

    Raises AdapterRejected, UploadTooLarge.
    """
    if not source.exists():
        raise AdapterRejected(f"{source} does not exist")
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) / "adapter"
        if source.is_dir():
            copy_adapter(source, folder)
        else:
            folder.mkdir()
            body = Path(tmp) / "body"
            shutil.copyfile(source, body)
            unpack(body, folder, NO_CAP)
        yield folder
