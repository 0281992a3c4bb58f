"""What transformers says of a base, kept for the next start.

That one needs neither transformers' modules nor torch's tracing, which are most of a start's time
(docs/decisions/0029).

    base-<hash>.safetensors    one tensor of JSON: facts, layers, the forward; and the buffers and
                               constants that it computes with

Named by the config, and the names, dtypes and shapes in the checkpoint: weights are always read
from the base's own files. Knows outlines and forwards; knows no adapters.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from app.model import call_list, kept_files
from app.model.outline import Facts, Layer, Outline, build, shapes_of
from app.model.written import Written

log = logging.getLogger(__name__)
JSON, BUFFER, CONSTANT = "json", "buffer.", "constant."
UNREADABLE = (OSError, SafetensorError, ValueError, TypeError, LookupError, AttributeError)


@dataclass(frozen=True, eq=False)
class KeptBase:
    """model: its layers with their weights, as transformers' modules would have them."""

    facts: Facts
    model: nn.Module
    written: Written


def name_of(folder: Path, dtype: torch.dtype, device: torch.device) -> str | None:
    """None: the folder's files cannot be told, and transformers will say why."""
    try:
        shapes = json.dumps(shapes_of(folder)).encode()
        config = (folder / "config.json").read_bytes()
    except (OSError, SafetensorError):
        return None
    which = f"{dtype} {device.type}".encode()
    return f"base-{kept_files.short_hash(config, shapes, which)}.safetensors"


def read(name: str, folder: Path, dtype: torch.dtype, device: torch.device) -> KeptBase | None:
    """None where nothing is kept, or by other versions of this server or its libraries."""
    body = kept_files.read(name)
    if body is None:
        return None
    try:
        tensors = load(body)
        told = json.loads(tensors.pop(JSON).numpy().tobytes())
        if told["by"] != _by():
            return None
        layers = [Layer(**layer) for layer in told["layers"]]
        model = build(Outline(layers, told["weights"]), folder, dtype)
        for path, buffer in _below(BUFFER, tensors).items():
            parent, _, leaf = path.rpartition(".")
            model.get_submodule(parent).register_buffer(leaf, buffer)
        constants = {k: t.to(device) for k, t in _below(CONSTANT, tensors).items()}
        written = Written(call_list.from_json(told["calls"]), constants)
        return KeptBase(Facts(**told["facts"]), model.to(device), written)
    except UNREADABLE as error:
        log.warning("%(name)s is not used: %(why)s", {"name": name, "why": repr(error)})
        return None


def keep(
    name: str, facts: Facts, outline: Outline, buffers: Mapping[str, Tensor], written: Written
) -> None:
    """Where that is possible; else the next start takes as long as this one."""
    if any(isinstance(value, nn.Parameter) for value in written.constants.values()):
        return  # a weight, which another checkpoint has otherwise
    try:
        calls = call_list.to_json(written.graph)
    except TypeError as error:
        log.info("the forward is written down at each start: %(why)s", {"why": str(error)})
        return
    told = asdict(outline) | {"facts": asdict(facts), "calls": calls, "by": _by()}
    tensors = {JSON: torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)}
    tensors |= {BUFFER + path: _own(buffer) for path, buffer in buffers.items()}
    tensors |= {CONSTANT + path: _own(value) for path, value in written.constants.items()}
    kept_files.write(name, save(tensors))


def _own(tensor: Tensor) -> Tensor:
    """safetensors takes no memory that two share."""
    return tensor.detach().cpu().contiguous().clone()


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


@cache
def _by() -> list[Any]:
    """The versions that what is kept depends on; of this server the sources themselves."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    ours = kept_files.short_hash(*(path.read_bytes() for path in sources))
    return [torch.__version__, version("transformers"), ours]
