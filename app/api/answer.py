"""Rows -> bytes: JSON straight from the tensors' memory, base64, or raw float32."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Any, Literal, assert_never

import numpy as np
import orjson
import torch
from fastapi import Request, Response
from torch import Tensor

from app.api.serving import Serving
from app.inference.choose import BASE
from app.inference.embed import Embedded
from app.inference.read import Texts
from app.inference.run import Ran
from app.inference.runtime import Runtime

Encoding = Literal["float", "base64", "binary", "ubinary"]
OCTETS = "application/octet-stream"
LINE_BYTES = 1_700  # of a list in a header; an answer has two of them, and 4 KiB for its head
ROOM_FOR_COUNT = 20


def accepts_octets(accept: str) -> bool:
    """Whether an Accept header asks for raw floats by name; `q=0` means that it does not."""
    parts = (part.replace(" ", "").lower().split(";") for part in accept.split(","))
    return any(kind == OCTETS and "q=0" not in more for kind, *more in parts)


def json_answer(content: Any, headers: dict[str, str], status: int = 200) -> Response:
    """numpy arrays inside `content` are written from their memory."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, "application/json")


def states_answer(rows: Sequence[Tensor], headers: dict[str, str]) -> Response:
    """rows [N] of [n, H] -> JSON. Blocks; a token at a time, since orjson keeps Python's lock."""
    texts = (
        b",".join(orjson.dumps(token, option=orjson.OPT_SERIALIZE_NUMPY) for token in row.numpy())
        for row in rows
    )
    body = b"[" + b",".join(b"[" + text + b"]" for text in texts) + b"]"
    return Response(body, 200, headers, "application/json")


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


def ran_headers(ran: Ran) -> dict[str, str]:
    """Which versions answered, and the milliseconds that each step took."""
    steps = {"tokenize": ran.tokenize_s, "queue": ran.queue_s, "inference": ran.inference_s}
    return {
        "X-Adapter": header_list([c.stamp for c in ran.choice.distinct]),
        "X-Adapter-Resident": str(all(c.resident for c in ran.choice.distinct)).lower(),
        "Server-Timing": ", ".join(f"{k};dur={1000 * s:.2f}" for k, s in steps.items()),
    }


def model_of(runtime: Runtime, ran: Ran) -> str:
    """The adapter that answered, as it was named; the base by its id, under which /v1/models has
    it.
    """
    named = ran.choice.distinct[0].spelled
    return runtime.engine.encoder.files.id if named == BASE else named


def tei_headers(request: Request, ran: Ran, texts: Texts) -> dict[str, str]:
    """TEI's headers: the sizes of what was asked, and whole milliseconds since the head came."""
    serving: Serving = request.app.state.serving
    on_gpu = serving.runtime.engine.encoder.device.type == "cuda"
    total_s = time.perf_counter() - request.state.began
    seconds = {
        "compute": total_s,
        "total": total_s,
        "tokenization": ran.tokenize_s,
        "queue": ran.queue_s,
        "inference": ran.inference_s,
    }
    return {
        "x-compute-type": "gpu" if on_gpu else "cpu",
        "x-compute-characters": str(texts.size),
        "x-compute-tokens": str(ran.token_count),
        **{f"x-{name}-time": str(int(1000 * s)) for name, s in seconds.items()},
    }


def embedded_headers(embedded: Embedded) -> dict[str, str]:
    """As ran_headers, and in which space the vectors lie."""
    return ran_headers(embedded.ran) | {"X-Embedding-Space": header_list(embedded.spaces)}


def packed_bits(rows: Sequence[Tensor], *, signed: bool) -> list[Any]:
    """One bit for each number, 1 where it is over 0, eight to a byte, the first one its highest.

    signed: each byte less 128, as Cohere and sentence-transformers have it.
    """
    packed = [np.packbits(row.numpy() > 0) for row in rows]
    return [(p.astype(np.int16) - 128).astype(np.int8) if signed else p for p in packed]


def encoded(rows: Sequence[Tensor], encoding: Encoding) -> list[Any]:
    """Vectors as JSON's numbers, as base64 strings, or as packed bits."""
    match encoding:
        case "float":
            return float_lists(rows)
        case "base64":
            return base64_strings(rows)
        case "binary" | "ubinary":
            return packed_bits(rows, signed=encoding == "binary")
        case _:
            assert_never(encoding)


def header_list(values: Sequence[str]) -> str:
    """As many of the values as a header may hold, then how many more there are.

    Proxies refuse an answer's head of over 4 to 8 KiB, most clients a line of 64 KiB.
    """
    line, last = "", len(values) - 1
    for i, value in enumerate(values):
        if len(line) + len(value) + 2 > LINE_BYTES - (ROOM_FOR_COUNT if i < last else 0):
            return f"{line}, and {len(values) - i} more" if line else f"{len(values)} of them"
        line += f", {value}" if line else value
    return line


def _little_endian(t: Tensor) -> Any:
    return np.ascontiguousarray(t.numpy(), dtype="<f4")
