"""Which of an upload's files are the adapter's: all of them from the folder that holds its weights.

Knows paths as an archive, a form or a folder spells them, with / between. Opens no file.
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

WEIGHTS_NAMES = (WEIGHTS, *ALIASES)
OWN_NAMES = {*WEIGHTS_NAMES, *(PurePosixPath(name).name for name in ADAPTER_FILES)}
BESIDE_WEIGHTS = (WEIGHTS, CONFIG, MODEL_CONFIG)  # a model above or below has its own of these
MAX_LISTED = 20
PICKLE = re.compile(r"\.(bin|pt|pth|pkl)$")
NAMED_WEIGHTS = re.compile(r"(^|/)(adapter_model|pytorch_adapter|pytorch_model)\.(bin|pt|pth)$")
TRAINING = re.compile(  # what transformers' and accelerate's trainers save beside the weights
    r"(^|/)(optimizer|scheduler|scaler|sampler|training_args|rng_state|random_states)[^/]*$"
)


@dataclass(frozen=True)
class OwnFiles:
    """An upload's paths. files: an adapter file's own name -> its path. aside: the others."""

    files: dict[str, str]
    aside: list[str]


def could_be_own(path: str) -> bool:
    """Can an adapter's file have this path? What macOS packs beside each file cannot."""
    parts = PurePosixPath(path).parts
    if not parts or "__MACOSX" in parts or parts[-1].startswith("._"):
        return False
    return parts[-1] in OWN_NAMES or parts[-1].endswith(".safetensors")


def own_files(paths: Sequence[str], path: str | None) -> OwnFiles:
    """Pick the adapter's files.

    paths: of all files, relative, each once. path: the folder to take, "" the top; None: the one
    that has weights. The weights are adapter_model.safetensors, or AdapterHub's
    adapter.safetensors, or else the one file that ends in .safetensors. Raises AdapterRejected
    where there are none, or several.
    """
    folder = None if path is None else plain_folder(path)
    usable = [p for p in paths if could_be_own(p)]
    inside = [p for p in usable if folder is None or folder in (_parent(p), _root(p))]
    candidates = _weights(inside)
    if not candidates:
        refuse_without_weights(paths, folder, _weights(usable))
    if len(candidates) > 1:
        _refuse_several(candidates)
    files = dict(_beside(candidates[0], set(usable)))
    own = set(files.values())
    return OwnFiles(files, [p for p in paths if p not in own])


def _weights(paths: Sequence[str]) -> list[str]:
    by_name = [path for path in paths if PurePosixPath(path).name in WEIGHTS_NAMES]
    return by_name or [path for path in paths if path.endswith(".safetensors")]


def _beside(weights: str, paths: set[str]) -> list[tuple[str, str]]:
    """(an adapter file's name, its path), for those that are there.

    A sentence-transformers folder may have its encoder in 0_Transformer: what describes the weights
    is there, and what describes the whole beside it.
    """
    parent, root = _parent(weights), _root(weights)
    files = [(WEIGHTS, weights)]
    for name in ADAPTER_FILES:
        places = [parent] if name in BESIDE_WEIGHTS else [root, parent]
        places = [root] if name == POOLING else places
        spelled = (f"{place}/{name}".lstrip("/") for place in places)
        path = next((path for path in spelled if path in paths), None)
        if name != WEIGHTS and path is not None:
            files.append((name, path))
    return files


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
    shown = listed(candidates)
    roots = list(dict.fromkeys(_root(path) for path in candidates))
    if len(roots) > 1:
        example = printable(next(root for root in roots if root))
        raise AdapterRejected(
            f"the upload holds the weights of several adapters, {shown}: send one folder, or say "
            f"which with ?path={example} (?path=. is the top)"
        )
    raise AdapterRejected(
        f"several files of one folder may be the weights, {shown}: send one of them, or call it "
        f"{WEIGHTS}"
    )


def refuse_without_weights(
    paths: Sequence[str], folder: str | None = None, elsewhere: Sequence[str] = ()
) -> None:
    """Raises AdapterRejected, saying what came in the weights' place.

    elsewhere: paths of weights in other folders.
    """
    if elsewhere:
        where = f"the folder {printable(folder)!r}" if folder else "the top folder"
        raise AdapterRejected(
            f"no {WEIGHTS} in {where} of the upload; there is {listed(elsewhere)}"
        )
    pickles = [p for p in paths if PICKLE.search(p) or PurePosixPath(p).name == "data.pkl"]
    weights = [p for p in pickles if NAMED_WEIGHTS.search(p)]
    weights = weights or [p for p in pickles if not TRAINING.search(p)]
    if weights:
        raise AdapterRejected(
            f"{printable(weights[0])} is a pickle, which can run code and is never opened: send "
            f"{WEIGHTS} (PEFT: save_pretrained(safe_serialization=True))"
        )
    raise AdapterRejected(
        f"no {WEIGHTS} in the upload; it holds {listed(paths) or 'no files'}"
        + (", where a trainer's own state is no weights" if pickles else "")
    )


def listed(paths: Sequence[str]) -> str:
    """The first of the paths, and how many more, for a refusal."""
    more = len(paths) - MAX_LISTED
    names = [printable(path)[:200] for path in paths[:MAX_LISTED]]
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def other_folders(aside: Sequence[str]) -> list[Problem]:
    """For a refusal: which configs were left aside, because they lie in another folder."""
    configs = [path for path in aside if PurePosixPath(path).name in (CONFIG, MODEL_CONFIG)]
    reason = "lies in another folder than the weights, and was left aside"
    return [Problem(reason, printable(path)[:200]) for path in configs[:MAX_LISTED]]


def left_aside(paths: Sequence[str]) -> list[str]:
    """A warning for each of these, and one for how many more there are."""
    reason = "not one of the adapter's files, left aside"
    warnings = [f"{path!r:.200}: {reason}" for path in paths[:MAX_LISTED]]
    more = len(paths) - len(warnings)
    return [*warnings, f"{more} more files were left aside"] if more else warnings
