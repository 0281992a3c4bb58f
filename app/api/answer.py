"""Rows -> bytes: JSON straight from the tensors' memory, base64, or raw float32."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import torch
from fastapi import Response
from torch import Tensor

OCTETS = "application/octet-stream"


def accepts_octets(accept: str) -> bool:
    """Whether an Accept header asks for raw floats by name; `q=0` means that it does not."""
    parts = (part.replace(" ", "").lower().split(";") for part in accept.split(","))
    return any(kind == OCTETS and "q=0" not in more for kind, *more in parts)


def json_answer(content: Any, headers: dict[str, str], status: int = 200) -> Response:
    """numpy arrays inside `content` are written from their memory."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, "application/json")


def float_lists(rows: Sequence[Tensor]) -> list[Any]:
    """Rows of fp32 as orjson writes them: the shortest digits that give the same float32."""
    return [row.numpy() for row in rows]


def base64_strings(rows: Sequence[Tensor]) -> list[str]:
    """Little-endian float32, as OpenAI clients read it."""
    return [base64.b64encode(_little_endian(row).tobytes()).decode() for row in rows]


def octets(rows: Sequence[Tensor], headers: dict[str, str]) -> Response:
    """rows [N] of [H] -> little-endian float32, row-major, with X-Shape: N,H."""
    block = torch.stack(list(rows))
    shape = {"X-Shape": ",".join(str(n) for n in block.shape)}
    return Response(_little_endian(block).tobytes(), 200, headers | shape, OCTETS)


def _little_endian(t: Tensor) -> Any:
    return np.ascontiguousarray(t.numpy(), dtype="<f4")
