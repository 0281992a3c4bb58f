"""Which fast paths this machine serves: each is tried at start, and has a slower twin.

A path that does not run here, or is wrong, costs speed and not answers: its twin serves instead.
The reason stands in the log, in /info, /readyz?verbose=true and bert_lora_slow_paths. Knows devices
and dtypes; knows no batches.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from app.model import attention, kernel, kernel_attention, kernel_int8, linear
from app.model.flat import Attention
from app.model.int8 import Int8Linear

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FastPaths:
    """kernels_on: see delta.gather. varlen: whether one attention call serves all lengths, on a
    GPU. attention: what computes it.

    slow: which part goes a slower way, and why; empty where all is well. fused: (out, in) of the
    Linears whose product and updates are one launch.
    """

    kernels_on: torch.device | None
    varlen: bool
    slow: Mapping[str, str]
    attention: Attention
    fused: frozenset[tuple[int, int]] = frozenset()

    def joins(self, linear: nn.Linear | Int8Linear) -> bool:
        """Whether it becomes one product with those that read the same rows."""
        if isinstance(linear, Int8Linear):
            return True
        return linear.weight.device.type == "cpu" or linear.weight.shape in self.fused


def try_paths(
    heads: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    shapes: Collection[tuple[int, int]],
) -> FastPaths:
    """Try each path once, and warn of those that go a slower way.

    heads: how many of attention, and how wide. shapes: (out, in) of the base's Linears.
    """
    whys = {"products": _products_why_not(dtype) if device.type == "cpu" else None}
    whys["updates"] = _kernels_why_not(device, dtype, shapes)
    one_launch: frozenset[tuple[int, int]] = frozenset()
    if device.type == "cuda" and whys["updates"] is None:
        from app.model import fused

        one_launch, whys["products"] = fused.chosen(device, dtype, shapes)
    varlen = device.type == "cuda"
    compiled = device.type == "cpu" and dtype in (torch.float32, torch.int8)
    if varlen:
        whys["attention"] = attention.varlen_why_not(heads, device, dtype)
    elif compiled:
        whys["attention"] = kernel_attention.why_not()
    slow = {part: why for part, why in whys.items() if why is not None}
    for part, why in slow.items():
        warn(part, why)
    kernels_on = None if "updates" in slow else device
    varlen, compiled = (path and "attention" not in slow for path in (varlen, compiled))
    attend = attention.attend_compiled if compiled else attention.attend
    return FastPaths(kernels_on, varlen, slow, attend, one_launch)


def warn(part: str, why: str) -> None:
    """Say in the log that this part goes a slower way."""
    log.warning("%(part)s: %(why)s", {"part": part, "why": why})


def _products_why_not(dtype: torch.dtype) -> str | None:
    """In int8 merged layers and those that an adapter brings whole are float32."""
    if dtype != torch.int8:
        return linear.product(dtype).instead
    return kernel_int8.why_not() or linear.product(torch.float32).instead


def _kernels_why_not(
    device: torch.device, dtype: torch.dtype, shapes: Collection[tuple[int, int]]
) -> str | None:
    if device.type == "cpu":
        return kernel.why_not()
    try:
        from app.model import kernel_cuda
    except ImportError as error:
        return f"{error}: {kernel.TORCH_SERVES}"
    return kernel_cuda.why_not(device, dtype, shapes)
