"""The open inference protocol (KServe v2), as tritonclient speaks it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import orjson
import torch
from fastapi import APIRouter, Depends, Response

from app.api.access import access
from app.api.answer import OCTETS, embedded_headers, json_answer, ran_headers
from app.api.body import documented_body
from app.api.caller import Called
from app.api.choosing import SelectedOne, with_model
from app.api.dialect import NATIVE
from app.api.infer_body import InferBody, Inference, InferParameters, Output, read_inference
from app.api.refusal import invalid
from app.api.routes.health import OBJECT, check_ready, livez
from app.api.serving import Served, Serving
from app.inference.build import own_version
from app.inference.caller import Caller
from app.inference.choose import BASE, Choice, Chosen, choose, resolve
from app.inference.classify import head_scores
from app.inference.embed import embed
from app.inference.read import Texts

router = APIRouter(prefix="/v2", tags=["kserve"])
KSERVE = replace(NATIVE, statuses={"validation": 400, "no_head": 400}, inputs="inputs[0].data")
PROBED = OBJECT | KSERVE.documented(503)
ANSWERS = OBJECT | KSERVE.documented(404)
INDEX: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A list of names with their versions.",
        "content": {
            "application/json": {"schema": {"type": "array", "items": {"type": "object"}}},
        },
    },
    **KSERVE.documented(),
}
INFERRED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Tensors: in JSON, or as bytes behind it.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["outputs"]}},
            OCTETS: {"schema": {"type": "string", "format": "binary"}},
        },
    },
    **KSERVE.documented(404, 413, 415, 429, 503),
}


@dataclass(frozen=True)
class Tensor:
    """values: float32 [N, …], or strings [N]."""

    name: Output
    values: np.ndarray[Any, Any] | Sequence[str]

    @property
    def head(self) -> dict[str, Any]:
        """What JSON says of it beside its data."""
        if isinstance(self.values, np.ndarray):
            return {"name": self.name, "datatype": "FP32", "shape": list(self.values.shape)}
        return {"name": self.name, "datatype": "BYTES", "shape": [len(self.values)]}

    def data(self) -> Any:
        """For JSON: flat, row after row."""
        return self.values.ravel() if isinstance(self.values, np.ndarray) else self.values

    def octets(self) -> bytes:
        """Little-endian; each string behind its length."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype("<f4").tobytes()
        strings = [value.encode() for value in self.values]
        return b"".join(len(s).to_bytes(4, "little") + s for s in strings)


@router.get("", response_class=Response, responses=ANSWERS)
@access("any key", dialect=KSERVE)
async def server_metadata() -> Response:
    """The server's name, version and extensions."""
    answer = {
        "name": "bert-lora-server",
        "version": own_version(),
        "extensions": ["binary_tensor_data", "model_repository"],
    }
    return json_answer(answer, {})


@router.get("/health/live", response_class=Response, responses=PROBED)
@access("nothing", probe=True, dialect=KSERVE)
async def server_live(serving: Served) -> Response:
    """As /livez."""
    await livez(serving)
    return json_answer({"live": True}, {})


@router.get("/health/ready", response_class=Response, responses=PROBED)
@access("nothing", probe=True, dialect=KSERVE)
async def server_ready(serving: Served) -> Response:
    """As /readyz."""
    check_ready(serving)
    return json_answer({"ready": True}, {})


@router.post("/repository/index", response_class=Response, responses=INDEX)
@access("any key", dialect=KSERVE)
async def repository_index(caller: Called, serving: Served) -> Response:
    """Every name that {model} may be."""
    runtime = serving.runtime
    names = dict(runtime.registry.names)
    usable = await asyncio.to_thread(caller.usable, tuple(names))
    models = [(BASE, runtime.engine.base.digest), *((n, names[n].digest) for n in usable)]
    entries = [{"name": n, "version": version, "state": "READY"} for n, version in models]
    return json_answer(entries, {})


@router.post(
    "/models/{model:path}/versions/{version}/infer",
    response_class=Response,
    responses=INFERRED,
    openapi_extra=documented_body(InferBody),
)
@access("any key", model=True, dialect=KSERVE)
async def version_infer(
    model: str,
    version: str,
    inference: Annotated[Inference, Depends(read_inference)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """The same, through one version of the model."""
    return await model_infer(f"{model}@{version}", inference, selection, caller, serving)


@router.post(
    "/models/{model:path}/infer",
    response_class=Response,
    responses=INFERRED,
    openapi_extra=documented_body(InferBody),
)
@access("any key", model=True, dialect=KSERVE)
async def model_infer(
    model: str,
    inference: Annotated[Inference, Depends(read_inference)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """BYTES in; an embedding out, or the scores of the adapter's head and their labels."""
    selection = with_model(serving.runtime, selection, model)
    texts, body = inference.texts, inference.body
    choice = await choose(serving.runtime, caller, selection, len(texts.items))
    wanted = [output.name for output in body.outputs or []] or _outputs(choice.lines[0][0])
    work = _Work(serving, caller, choice, texts, body.parameters)
    tensors, headers = await _run(work, wanted)
    binary = {
        output.name: body.parameters.binary_data_output
        if output.parameters.binary_data is None
        else output.parameters.binary_data
        for output in body.outputs or []
    }
    chosen = choice.lines[0][0]
    answer = {"model_name": model.partition("@")[0], "model_version": chosen.version.digest}
    answer |= {} if body.id is None else {"id": body.id}
    as_bytes = [binary.get(t.name, body.parameters.binary_data_output) for t in tensors]
    return _answer(answer, tensors, as_bytes, headers)


@dataclass(frozen=True)
class _Work:
    serving: Serving
    caller: Caller
    choice: Choice
    texts: Texts
    parameters: InferParameters


def _outputs(chosen: Chosen) -> list[Output]:
    """What a model gives where nothing is said."""
    adapter = chosen.version.adapter
    return ["scores", "labels"] if adapter.head and adapter.task == "classify" else ["embedding"]


async def _run(work: _Work, wanted: Sequence[Output]) -> tuple[list[Tensor], dict[str, str]]:
    """The wanted tensors, in that order, and headers. Raises Refusal."""
    runtime, chosen = work.serving.runtime, work.choice.lines[0][0]
    if "embedding" in wanted:
        if len(wanted) > 1:
            raise invalid("outputs", "asks for embedding beside others: send two requests")
        wish = work.parameters.wish()
        embedded = await embed(runtime, work.caller, work.texts, work.choice, wish)
        block = torch.stack(embedded.ran.lines[0]).numpy()
        return [Tensor("embedding", block)], embedded_headers(embedded)
    if chosen.version.adapter.task == "tokens":
        raise invalid("outputs", f"asks for scores; {chosen.name} labels words: POST /classify")
    raw = work.parameters.raw_scores
    scored = await head_scores(runtime, work.caller, work.texts, work.choice, raw_scores=raw)
    by_name: dict[Output, Tensor] = {
        "scores": Tensor("scores", torch.stack(scored.rows).numpy()),
        "labels": Tensor("labels", scored.adapter.labels),
    }
    return [by_name[name] for name in wanted], ran_headers(scored.ran)


def _answer(
    answer: dict[str, Any],
    tensors: Sequence[Tensor],
    as_bytes: Sequence[bool],
    headers: dict[str, str],
) -> Response:
    outputs, tail = [], b""
    for tensor, binary in zip(tensors, as_bytes, strict=True):
        if binary:
            block = tensor.octets()
            tail += block
            outputs.append(tensor.head | {"parameters": {"binary_data_size": len(block)}})
        else:
            outputs.append(tensor.head | {"data": tensor.data()})
    answer = {**answer, "outputs": outputs}
    if not any(as_bytes):
        return json_answer(answer, headers)
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    length = {"Inference-Header-Content-Length": str(len(head))}
    return Response(head + tail, 200, headers | length, OCTETS)


@router.get(
    "/models/{model:path}/versions/{version}/ready", response_class=Response, responses=ANSWERS
)
@access("any key", dialect=KSERVE)
async def version_ready(model: str, version: str, caller: Called, serving: Served) -> Response:
    """Whether this version of the model answers."""
    return await model_ready(f"{model}@{version}", caller, serving)


@router.get("/models/{model:path}/ready", response_class=Response, responses=ANSWERS)
@access("any key", dialect=KSERVE)
async def model_ready(model: str, caller: Called, serving: Served) -> Response:
    """Whether the model answers; one that is not there is a 404."""
    check_ready(serving)
    await resolve(serving.runtime, caller, model)
    return json_answer({"name": model.partition("@")[0], "ready": True}, {})


@router.get("/models/{model:path}/versions/{version}", response_class=Response, responses=ANSWERS)
@access("any key", dialect=KSERVE)
async def version_metadata(model: str, version: str, caller: Called, serving: Served) -> Response:
    """The same, of one version."""
    return await model_metadata(f"{model}@{version}", caller, serving)


@router.get("/models/{model:path}", response_class=Response, responses=ANSWERS)
@access("any key", dialect=KSERVE)
async def model_metadata(model: str, caller: Called, serving: Served) -> Response:
    """What the base or an adapter takes and gives."""
    runtime = serving.runtime
    chosen = await resolve(runtime, caller, model)
    name = runtime.registry.names.get(chosen.name)
    history = [e.version for e in name.pointer.history] if name else [chosen.version.digest]
    sizes = {
        "embedding": ("FP32", [-1, runtime.engine.encoder.base.hidden]),
        "scores": ("FP32", [-1, len(chosen.version.adapter.labels)]),
        "labels": ("BYTES", [len(chosen.version.adapter.labels)]),
    }
    answer = {
        "name": model.partition("@")[0],
        "versions": list(dict.fromkeys(history)),
        "platform": "bert-lora-server",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": output, "datatype": sizes[output][0], "shape": sizes[output][1]}
            for output in _outputs(chosen)
        ],
    }
    return json_answer(answer, {})
