"""Which files make up an adapter, under which names, and where they go."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from app.adapters.upload import AdapterRejected

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
GOLDEN = "golden.jsonl"
MODULES, POOLING = "modules.json", "1_Pooling/config.json"
TRANSFORMER, PROMPTS = "sentence_bert_config.json", "config_sentence_transformers.json"
SENTENCE_FILES = (MODULES, POOLING, TRANSFORMER, PROMPTS)
ADAPTER_FILES = (WEIGHTS, CONFIG, MODEL_CONFIG, *SENTENCE_FILES, GOLDEN)
ALIASES = {"adapter.safetensors": WEIGHTS}  # AdapterHub's name for it
MODULE_FOLDER = re.compile(r"\d+_\w+")


def copy_adapter(
    source: Path, folder: Path, copy: Callable[[Path, Path], object] = shutil.copyfile
) -> None:
    """A new `folder` with the adapter files of an existing one.

    Raises OSError, AdapterRejected, and what `copy` raises.
    """
    folder.mkdir()
    for name in ADAPTER_FILES:
        found = next((source / n for n in _spellings(name) if (source / n).is_file()), None)
        if found is not None:
            copy(found, place(folder, name))
    refuse_if_only_pickle(folder, sorted(path.name for path in source.iterdir()))


def _spellings(name: str) -> list[str]:
    """Where a folder may have it: by an alias, or in a sentence-transformers model's first module."""
    plain = [name, *(alias for alias, of in ALIASES.items() if of == name)]
    return [*plain, *(f"0_Transformer/{spelled}" for spelled in plain)]


def looks_like_adapter(folder: Path) -> bool:
    """Whether the folder is meant to be an adapter's, be it half copied, a pickle or unreadable."""
    names = [*_spellings(WEIGHTS), *_spellings(CONFIG), "adapter_model.bin"]
    try:
        return any((folder / name).is_file() for name in names)
    except OSError:
        return True


def adapter_folders(adapters_dir: Path) -> set[str]:
    """Names of the folders of ADAPTERS_DIR that are meant to be adapters; hidden ones are not.

    None where ADAPTERS_DIR is missing. Raises OSError where it cannot be read: pathlib's glob would
    call a folder that may not be read empty.
    """
    try:
        with os.scandir(adapters_dir) as entries:
            found = [Path(entry.path) for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError:
        return set()
    return {path.name for path in found if looks_like_adapter(path)}


def printable(name: str) -> str:
    """A file's name as it can be shown: what is no UTF-8 in it escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


State = frozenset[tuple[str, int, int, int, int]]


def folder_state(folder: Path) -> State:
    """What tells whether any file of an adapter's folder has changed: times, size, and inode."""
    found = []
    for path in [*folder.glob("*"), *folder.glob("*/*")]:
        with contextlib.suppress(OSError):
            s = path.stat()
            found.append((str(path), s.st_mtime_ns, s.st_ctime_ns, s.st_size, s.st_ino))
    return frozenset(found)


def adapter_file(name: str) -> str | None:
    """The adapter file that an archive's or form's name stands for, or None.

    What lies in a sentence-transformers module's own folder ("2_Normalize/config.json") is not the
    adapter's, but for the pooling's config.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if "/".join(path.parts[-2:]) == POOLING:
        return POOLING
    folders = [part for part in path.parts[:-1] if MODULE_FOLDER.fullmatch(part)]
    if any(not part.startswith("0_") for part in folders):  # 0_Transformer is the adapter's own
        return None
    found = ALIASES.get(path.name, path.name)
    return found if found in ADAPTER_FILES else None


def place(folder: Path, name: str) -> Path:
    """Where an adapter file goes."""
    target = folder / name
    target.parent.mkdir(exist_ok=True)
    return target


def refuse_if_only_pickle(folder: Path, left: list[str]) -> None:
    """Raises AdapterRejected where no weights came, saying what came in their place."""
    if (folder / WEIGHTS).exists():
        return
    left = [printable(name) for name in left]
    if WEIGHTS in left:
        raise AdapterRejected(f"{WEIGHTS} is no plain file: a link that leads nowhere, or a device")
    pickles = [name for name in left if name.endswith((".bin", ".pt", ".pth", ".pkl", "data.pkl"))]
    if pickles:
        raise AdapterRejected(
            f"{pickles[0]} is a pickle, which can run code and is never opened: send "
            f"{WEIGHTS} (PEFT: save_pretrained(safe_serialization=True))"
        )
    raise AdapterRejected(f"no {WEIGHTS} in the upload; it holds {', '.join(left) or 'no files'}")
