"""An adapter's folder on disk -> a new folder of its adapter files alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from app.adapters.files import MODULE, POOLING, WEIGHTS, place
from app.adapters.receiving.own_files import own_files, told
from app.adapters.refusals import AdapterRejected

Copy = Callable[[Path, Path], object]


def copy_adapter(source: Path, folder: Path, copy: Copy = shutil.copyfile) -> None:
    """A new `folder` with the adapter files of `source` itself, not of folders below it.

    Raises OSError, AdapterRejected, and what `copy` raises.
    """
    folder.mkdir()
    paths = sorted(_paths(source))
    if not any(path.endswith(".safetensors") for path in paths):
        _refuse_unreadable(source)
    for name, path in own_files(paths, "").files.items():
        copy(source / path, place(folder, name))


def _paths(source: Path) -> Iterator[str]:
    """Of plain files, and links to some: in the folder, and in sentence-transformers' own below it."""
    for below in ("", MODULE, Path(POOLING).parent.name):
        if (source / below).is_dir():
            for path in (source / below).iterdir():
                if path.is_file():
                    yield f"{below}/{path.name}".lstrip("/")


def _refuse_unreadable(source: Path) -> None:
    """Raises AdapterRejected where the weights are no file, or are those of a folder below."""
    weights = source / WEIGHTS
    if weights.is_symlink() or weights.exists():
        raise AdapterRejected(f"{WEIGHTS} is no plain file: a link that leads nowhere, or a device")
    deeper = sorted(str(p.relative_to(source)) for p in source.glob(f"*/{WEIGHTS}"))
    if deeper:
        raise AdapterRejected(
            f"no {WEIGHTS} in this folder; there is {told(deeper)}: name the folder that holds it"
        )
