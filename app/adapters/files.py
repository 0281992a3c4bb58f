"""Which files make up an adapter, under which names, and where they go.

Knows names and folders; reads no file.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
GOLDEN = "golden.jsonl"
MODULES, POOLING = "modules.json", "1_Pooling/config.json"
TRANSFORMER, PROMPTS = "sentence_bert_config.json", "config_sentence_transformers.json"
SENTENCE_FILES = (MODULES, POOLING, TRANSFORMER, PROMPTS)
ADAPTER_FILES = (WEIGHTS, CONFIG, MODEL_CONFIG, *SENTENCE_FILES, GOLDEN)
ALIASES = {"adapter.safetensors": WEIGHTS}  # AdapterHub's name for it
MODULE = "0_Transformer"  # where an old sentence-transformers folder has its encoder


def _spellings(name: str) -> list[str]:
    """Where a folder may have it: by an alias, or in sentence-transformers' first module."""
    plain = [name, *(alias for alias, of in ALIASES.items() if of == name)]
    return [*plain, *(f"{MODULE}/{spelled}" for spelled in plain)]


def looks_like_adapter(folder: Path) -> bool:
    """Is the folder meant to be an adapter's, be it half copied, a pickle or unreadable?"""
    names = [*_spellings(WEIGHTS), *_spellings(CONFIG), "adapter_model.bin"]
    try:
        return any((folder / name).is_file() for name in names)
    except OSError:
        return True


def adapter_folders(adapters_dir: Path) -> set[str]:
    """Names of the folders of ADAPTERS_DIR that are meant to be adapters; hidden ones are not.

    None of them where ADAPTERS_DIR is missing. Raises OSError where it cannot be read: pathlib's
    glob would call a folder that may not be read empty.
    """
    try:
        with os.scandir(adapters_dir) as entries:
            paths = [Path(entry.path) for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError:
        return set()
    return {path.name for path in paths if looks_like_adapter(path)}


def printable(name: str) -> str:
    """A file's name as it can be shown: what is no UTF-8 in it escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


State = frozenset[tuple[str, int, int, int, int]]


def folder_state(folder: Path) -> State:
    """What tells whether any file of an adapter's folder has changed: times, size, and inode."""
    files = []
    for path in [*folder.glob("*"), *folder.glob("*/*")]:
        with contextlib.suppress(OSError):
            s = path.stat()
            files.append((str(path), s.st_mtime_ns, s.st_ctime_ns, s.st_size, s.st_ino))
    return frozenset(files)


def place(folder: Path, name: str) -> Path:
    """Where an adapter file goes."""
    target = folder / name
    target.parent.mkdir(exist_ok=True)
    return target
