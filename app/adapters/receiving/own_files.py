"""Which of an upload's files are the adapter's: all of them from the folder that holds its weights.

Knows paths as an archive, a form or a folder spells them; opens no file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from app.adapters.files import (
    ADAPTER_FILES,
    ALIASES,
    CONFIG,
    MODEL_CONFIG,
    MODULE,
    POOLING,
    WEIGHTS,
    printable,
)
from app.adapters.refusals import AdapterRejected, Problem

KNOWN_WEIGHTS = (WEIGHTS, *ALIASES)
KNOWN_NAMES = {*KNOWN_WEIGHTS, *(PurePosixPath(name).name for name in ADAPTER_FILES)}
BESIDE_WEIGHTS = (WEIGHTS, CONFIG, MODEL_CONFIG)  # a model above or below has its own of these
MOST_TOLD = 20
PICKLE = re.compile(r"\.(bin|pt|pth|pkl)$")
NAMED_WEIGHTS = re.compile(r"(^|/)(adapter_model|pytorch_adapter|pytorch_model)\.(bin|pt|pth)$")
TRAINING = re.compile(  # what transformers' and accelerate's trainers save beside the weights
    r"(^|/)(optimizer|scheduler|scaler|sampler|training_args|rng_state|random_states)[^/]*$"
)


@dataclass(frozen=True)
class OwnFiles:
    """files: an adapter file's own name -> its path in the upload. aside: all the other paths."""

    files: dict[str, str]
    aside: list[str]


def could_be_own(path: str) -> bool:
    """Whether an adapter's file can have this path: what macOS packs beside each file cannot."""
    parts = PurePosixPath(path).parts
    if not parts or "__MACOSX" in parts or parts[-1].startswith("._"):
        return False
    return parts[-1] in KNOWN_NAMES or parts[-1].endswith(".safetensors")


def own_files(paths: Sequence[str], asked: str | None) -> OwnFiles:
    """paths: of all files, with / between, relative, each once. asked: the folder to take, "" the top.

    The weights are adapter_model.safetensors, or AdapterHub's adapter.safetensors, or else the one
    file that ends in .safetensors. Raises AdapterRejected where there are none, or several.
    """
    folder = None if asked is None else plain_folder(asked)
    usable = [path for path in paths if could_be_own(path)]
    inside = [path for path in usable if folder is None or folder in (_parent(path), _root(path))]
    candidates = _weights(inside)
    if not candidates:
        refuse_without_weights(paths, folder, _weights(usable))
    if len(candidates) > 1:
        _refuse_several(candidates)
    files = dict(_beside(candidates[0], set(usable)))
    taken = set(files.values())
    return OwnFiles(files, [path for path in paths if path not in taken])


def _weights(paths: Sequence[str]) -> list[str]:
    known = [path for path in paths if PurePosixPath(path).name in KNOWN_WEIGHTS]
    return known or [path for path in paths if path.endswith(".safetensors")]


def _beside(weights: str, paths: set[str]) -> list[tuple[str, str]]:
    """(adapter file, its path), for those that are there.

    A sentence-transformers folder may have its encoder in 0_Transformer: what speaks of the weights is
    there, and what speaks of the whole beside it.
    """
    parent, root = _parent(weights), _root(weights)
    found = [(WEIGHTS, weights)]
    for name in ADAPTER_FILES:
        places = [parent] if name in BESIDE_WEIGHTS else [root, parent]
        places = [root] if name == POOLING else places
        spelled = (f"{place}/{name}".lstrip("/") for place in places)
        path = next((path for path in spelled if path in paths), None)
        if name != WEIGHTS and path is not None:
            found.append((name, path))
    return found


def _parent(path: str) -> str:
    parent = str(PurePosixPath(path).parent)
    return "" if parent == "." else parent


def _root(path: str) -> str:
    """The adapter's folder: the one that holds the file, or that holds its 0_Transformer."""
    parent = PurePosixPath(_parent(path))
    return _parent(str(parent)) if parent.name == MODULE else _parent(path)


def plain_folder(folder: str) -> str:
    """A folder's path as own_files has it. Raises AdapterRejected for one outside of the upload."""
    path = PurePosixPath(folder.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in folder:
        raise AdapterRejected(f"path={folder!r:.200} is no folder inside of the upload")
    return "" if str(path) == "." else str(path)


def _refuse_several(candidates: Sequence[str]) -> None:
    """Raises AdapterRejected, naming them."""
    shown = told(candidates)
    roots = list(dict.fromkeys(_root(path) for path in candidates))
    if len(roots) > 1:
        raise AdapterRejected(
            f"the upload holds the weights of several adapters, {shown}: send one folder, or say which "
            f"with ?path={printable(next(root for root in roots if root))} (?path=. is the top)"
        )
    raise AdapterRejected(
        f"several files of one folder may be the weights, {shown}: send one of them, or call it {WEIGHTS}"
    )


def refuse_without_weights(
    paths: Sequence[str], folder: str | None = None, elsewhere: Sequence[str] = ()
) -> None:
    """Raises AdapterRejected, saying what came in the weights' place. elsewhere: weights in other folders."""
    if elsewhere:
        where = f"the folder {printable(folder)!r}" if folder else "the top folder"
        raise AdapterRejected(f"no {WEIGHTS} in {where} of the upload; there is {told(elsewhere)}")
    pickles = [p for p in paths if PICKLE.search(p) or PurePosixPath(p).name == "data.pkl"]
    weights = [p for p in pickles if NAMED_WEIGHTS.search(p)]
    weights = weights or [p for p in pickles if not TRAINING.search(p)]
    if weights:
        raise AdapterRejected(
            f"{printable(weights[0])} is a pickle, which can run code and is never opened: send "
            f"{WEIGHTS} (PEFT: save_pretrained(safe_serialization=True))"
        )
    raise AdapterRejected(
        f"no {WEIGHTS} in the upload; it holds {told(paths) or 'no files'}"
        + (", where a trainer's own state is no weights" if pickles else "")
    )


def told(paths: Sequence[str]) -> str:
    """Some of the paths, and how many more."""
    more = len(paths) - MOST_TOLD
    named = [printable(path)[:200] for path in paths[:MOST_TOLD]]
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def other_folders(aside: Sequence[str]) -> list[Problem]:
    """For a refusal: which files were left aside that are the weights' elsewhere."""
    known = [path for path in aside if PurePosixPath(path).name in (CONFIG, MODEL_CONFIG)]
    reason = "lies in another folder than the weights, and was left aside"
    return [Problem(reason, printable(path)[:200]) for path in known[:MOST_TOLD]]


def left_aside(paths: Sequence[str]) -> list[str]:
    """A warning for each of these, and one for how many more there are."""
    said = [
        f"{path!r:.200}: not one of the adapter's files, left aside" for path in paths[:MOST_TOLD]
    ]
    more = len(paths) - len(said)
    return [*said, f"{more} more files were left aside"] if more else said
