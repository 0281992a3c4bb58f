"""A version's files -> a tar of the folder that PEFT loads, and that can be uploaded again."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from safetensors.torch import save

from app.adapters.files import ADAPTER_FILES, CONFIG, WEIGHTS
from app.adapters.peft_folder import metadata_of, over_config, peft_tensors
from app.adapters.receiving.upload import read_json, read_tensors
from app.adapters.values import Adapter
from app.catalog.load import recipe_of
from app.catalog.store import Json
from app.model.encoder import Encoder


def export(folder: Path, options: Json, adapter: Adapter, encoder: Encoder) -> bytes:
    """folder: a stored version's. options: of its query, which go along as metadata.

    The same bytes for the same version. Blocks. Raises OSError.
    """
    weights = read_tensors(folder / WEIGHTS)
    recipe = recipe_of(folder, weights.metadata, options)
    tensors, config = peft_tensors(weights.tensors, recipe, encoder.base, adapter)
    files = {
        name: (folder / name).read_bytes()
        for name in ADAPTER_FILES
        if name != WEIGHTS and (folder / name).exists()
    }
    if config is None and any(name in options for name in read_json(folder / CONFIG)):
        config = over_config(read_json(folder / CONFIG), options)
    if config is not None:
        files[CONFIG] = json.dumps(config, indent=2).encode()
    metadata = weights.metadata | metadata_of(options)
    return _tar({WEIGHTS: save(tensors, metadata), **files})


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()
