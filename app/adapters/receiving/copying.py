"""An adapter's folder on disk -> a new folder of its adapter files alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from app.adapters.files import MODULE, POOLING, WEIGHTS, place
from app.adapters.receiving.own_files import listed, own_files
from app.adapters.refusals import AdapterRejected

Copy = Callable[[Path, Path], object]


def copy_adapter(source: Path, folder: Path, copy: Copy = shutil.copyfile) -> None:
    """Make a new `folder` of the adapter files of `source` itself, not of folders below it.

    Raises OSError, AdapterRejected, and what `copy` raises.
    """
    folder.mkdir()
    paths = sorted(_paths(source))
    if not any(path.endswith(".safetensors") for path in paths):
        _refuse_unreadable(source)
    for name, path in own_files(paths, "").files.items():
        copy(source / path, place(folder, name))


def _paths(source: Path) -> Iterator[str]:
    """Of plain files and links to them, here and in sentence-transformers' own folders below."""
    for folder in (source, source / MODULE, source / Path(POOLING).parent):
        if folder.is_dir():
            yield from (str(p.relative_to(source)) for p in folder.iterdir() if p.is_file())


def _refuse_unreadable(source: Path) -> None:
    """Raises AdapterRejected where the weights are no file, or are those of a folder below."""
    weights = source / WEIGHTS
    if weights.is_symlink() or weights.exists():
        raise AdapterRejected(f"{WEIGHTS} is no plain file: a link that leads nowhere, or a device")
    deeper = sorted(str(p.relative_to(source)) for p in source.glob(f"*/{WEIGHTS}"))
    if deeper:
        raise AdapterRejected(
            f"no {WEIGHTS} in this folder; there is {listed(deeper)}: name the folder that holds it"
        )
