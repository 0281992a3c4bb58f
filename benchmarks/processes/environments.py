"""What is measured with: this machine, this commit, and a virtual environment for each peer.

The environments are in build/peers (git ignores it), pinned, and made once; remove the folder to
start over.

torch is the one that we run, linked in: nobody wins by a newer build, and no gigabyte is fetched
twice.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, distributions, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "peers"
TRANSFORMERS = f"transformers=={version('transformers')}"
EXPORT = ["onnx==1.23.2", "onnxscript==0.7.2", TRANSFORMERS]
# infinity-emb's BetterTransformer, its default and its fastest path, is optimum's: optimum 2 has none,
# and optimum 1 raises beside transformers 4.49 or later (its own extras bring no optimum at all, so that a
# plain install runs without). With click 8.5 its command ends in a TypeError.
PINS = {
    "infinity-emb": [
        "infinity-emb[torch,server]==0.0.78", "transformers==4.48.3", "optimum==1.27.0",
        "sentence-transformers==3.4.1", "huggingface-hub==0.36.2", "numpy==1.26.4", "click==8.1.8",
        "typer==0.12.5", "fastapi==0.165.0", "starlette==1.10.0", "uvicorn==0.32.1",
        "prometheus-fastapi-instrumentator==8.1.0",
    ],
    "sentence-transformers": ["sentence-transformers==6.2.0", TRANSFORMERS],
    "onnxruntime": ["onnxruntime==1.32.0", *EXPORT],
    "openvino": ["openvino==2026.4.1", *EXPORT],
    "fastembed": ["fastembed==0.9.1", "onnxruntime==1.32.0", *EXPORT],
    "polylora": ["polylora==0.1.1", "safetensors==0.8.0", TRANSFORMERS],
}  # fmt: skip
LINKED = ("torch", "torchgen", "functorch")
INSTALL_S = 1200


class CannotInstall(Exception):
    """A peer's environment that could not be made, with pip's last words."""


def machine() -> dict[str, object]:
    """What the figures depend on besides the versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    return {
        "cpu": next(names, "unknown"), "cores": os.cpu_count(), "platform": platform.platform(),
        "python": platform.python_version(),
    }  # fmt: skip


def commit() -> str:
    """Of this repository, with -dirty where something is not committed."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def python_of(peer: str) -> Path:
    """The interpreter of the peer's environment, made where it is not there. Raises
    CannotInstall.
    """
    folder, pins = CACHE / peer, [*PINS[peer], f"torch=={version('torch')}"]
    python, made = folder / "bin" / "python", folder / "made.json"
    if made.exists() and json.loads(made.read_text()) == pins:
        return python
    print(f"making {folder}", file=sys.stderr, flush=True)
    made.unlink(missing_ok=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    _link_torch(_site_packages(folder))
    _run([str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", *pins])
    made.write_text(json.dumps(pins))
    return python


def versions_of(peer: str) -> dict[str, str]:
    """What is installed there, of what was asked for."""
    names = {pin.split("==")[0].split("[")[0] for pin in [*PINS[peer], "torch=="]}
    found = {_plain(d): d.version for d in distributions(path=[str(_site_packages(CACHE / peer))])}
    return {name: found[name] for name in sorted(names) if name in found}


def _plain(distribution: Distribution) -> str:
    return distribution.metadata["Name"].lower().replace("_", "-")


def _site_packages(folder: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))


def _link_torch(site_packages: Path) -> None:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise CannotInstall("torch is not installed here")
    ours = Path(spec.origin).parents[1]
    for source in [*(ours / name for name in LINKED), *ours.glob("torch-*.dist-info")]:
        link = site_packages / source.name
        if source.exists() and not link.exists():
            link.symlink_to(source)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotInstall(str(error)) from None
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise CannotInstall(words[-1] if words else f"{command[0]} ended with {done.returncode}")
