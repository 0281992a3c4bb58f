"""An upload that says where its files are: a folder of this machine, or a repository of the hub.

Both are off until the server's settings allow them. Knows nothing of LoRA.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from app.adapters.files import MODULE, POOLING
from app.adapters.receiving.copying import copy_adapter
from app.adapters.receiving.own_files import (
    WEIGHTS_NAMES,
    own_files,
    plain_folder,
    refuse_without_weights,
)
from app.adapters.refusals import AdapterRejected, UploadTooLarge

HUB = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
OWN_FOLDERS = ("", MODULE, POOLING.split("/", maxsplit=1)[0])


class SourceForbidden(Exception):
    """The settings do not allow this source."""


@dataclass(frozen=True)
class Sources:
    """What the settings allow. folders: a source lies below one. hub: may it be hf:…?"""

    folders: tuple[Path, ...] = ()
    hub: bool = False


def fetch_source(
    source: str, allowed: Sources, folder: Path, max_bytes: int, path: str | None = None
) -> None:
    """Put the adapter files that the source points at into `folder`, which is there and empty.

    source: /folder or hf:org/repo@revision. path: the folder below it that holds the files; None:
    the source itself. Raises SourceForbidden, AdapterRejected, UploadTooLarge, OSError.
    """
    below = plain_folder(path or "")
    folder.rmdir()
    if source.startswith("hf:"):
        _from_hub(source, below, allowed, folder, max_bytes)
    else:
        _from_folder(source, below, allowed, folder, max_bytes)


def _from_folder(source: str, below: str, allowed: Sources, folder: Path, max_bytes: int) -> None:
    roots = [root.resolve() for root in allowed.folders]
    try:
        whole = Path(source, below)
        real = whole.resolve()
        is_folder = real.is_dir()
    except (ValueError, OSError, RuntimeError):
        raise AdapterRejected(f"{source!r} is no path") from None
    if not whole.is_absolute() or not _below(real, roots):
        raise SourceForbidden(
            f"{str(whole)!r} is not below a folder that this server may read (SOURCE_DIRS)"
        )
    if not is_folder:
        raise AdapterRejected(f"{str(whole)!r} is no folder")
    remaining = max_bytes

    def copy(path: Path, target: Path) -> None:
        nonlocal remaining
        remaining -= _copy_below(path, target, roots)
        if remaining < 0:
            raise UploadTooLarge(max_bytes)

    copy_adapter(real, folder, copy)


def _below(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _copy_below(path: Path, target: Path, roots: Sequence[Path]) -> int:
    """Copy one file, wherever its links lead below the roots; its size."""
    real = path.resolve()
    if not _below(real, roots):
        raise SourceForbidden(f"{path.name} is a link to outside of SOURCE_DIRS")
    # What is checked is what is read: not a link that took the file's place meanwhile, and no pipe.
    descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise AdapterRejected(f"{path.name} is no plain file")
        with target.open("wb") as copied:
            shutil.copyfileobj(file, copied)
    return status.st_size


def _from_hub(source: str, below: str, allowed: Sources, folder: Path, max_bytes: int) -> None:
    if not allowed.hub:
        raise SourceForbidden("this server takes nothing from the hub (ALLOW_HUB)")
    match = HUB.fullmatch(source)
    if match is None:
        raise AdapterRejected(f"{source!r} is not hf:organisation/repository@revision")
    repository, revision = match.groups()
    from huggingface_hub import HfApi, snapshot_download  # 0.1 s of a start, where nobody asks
    from huggingface_hub.hf_api import RepoFile

    downloaded = folder.with_name("hub")
    try:
        tree = HfApi().list_repo_tree(repository, recursive=True, revision=revision)
        sizes = {file.path: file.size for file in tree if isinstance(file, RepoFile)}
        paths = _own_paths(list(sizes), below)
        if sum(sizes[path] for path in paths) > max_bytes:
            raise UploadTooLarge(max_bytes)
        snapshot_download(repository, revision=revision, local_dir=downloaded, allow_patterns=paths)
    except (AdapterRejected, UploadTooLarge):
        raise
    except Exception as error:  # whatever the hub's client, and its client of HTTP, may raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise AdapterRejected(f"the hub did not give {source}: {lines[0]}") from None
    copy_adapter(downloaded / below, folder)
    with contextlib.suppress(OSError):
        shutil.rmtree(downloaded)


def _own_paths(paths: list[str], below: str) -> list[str]:
    """The adapter's own files of the repository's folder. Raises AdapterRejected."""
    before = f"{below}/" if below else ""
    inside = [path.removeprefix(before) for path in paths if path.startswith(before)]
    own = [path for path in inside if path.rpartition("/")[0] in OWN_FOLDERS]
    if not any(path.endswith(".safetensors") for path in own):
        elsewhere = [path for path in paths if PurePosixPath(path).name in WEIGHTS_NAMES]
        refuse_without_weights(inside, below, elsewhere)
    return [before + path for path in own_files(own, "").files.values()]
