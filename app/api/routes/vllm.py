"""vLLM's own calls: /classify with `input`, /score and /pooling."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, assert_never

from fastapi import APIRouter, Request, Response
from pydantic import AliasChoices, ConfigDict, Field

from app.adapters.values import Adapter
from app.api.access import access
from app.api.answer import embedded_headers, encoded, json_answer, model_of, ran_headers
from app.api.body import body_of, documented_body
from app.api.caller import Called
from app.api.choosing import SelectedOne, with_model
from app.api.inputs import Inputs
from app.api.openai_errors import OPENAI
from app.api.refusal import invalid
from app.api.serving import Served, Serving
from app.api.vllm_members import EncodedMembers, VllmBody
from app.inference.caller import Caller
from app.inference.choose import Selection, choose
from app.inference.classify import HeadScores, head_scores
from app.inference.embed import EmbedWish, embed
from app.inference.pairs import score_pairs
from app.inference.run import Ran

router = APIRouter(tags=["vllm"])
ERRORS = OPENAI.documented(404, 413, 415, 429, 503)
PAIRS = replace(OPENAI, inputs="pairs")
LISTED = {"type": "object", "required": ["id", "object", "created", "model", "data", "usage"]}
PoolingTask = Literal["embed", "classify", "token_classify", "token_embed"]


class HeadBody(VllmBody):
    """What may be said of a head's scores; vLLM has had three names for it."""

    use_activation: bool | None = Field(None, description="false: logits. Also as the next two.")
    activation: bool | None = None
    softmax: bool | None = None

    @property
    def activated(self) -> bool | None:
        """None: not said."""
        said = (self.use_activation, self.activation, self.softmax)
        return next((value for value in said if value is not None), None)


class ClassifyInputBody(HeadBody):
    """vLLM's; told from the native body by `input`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "banking77", "input": ["Where is my card?"]}]}
    )

    input: Inputs


class PoolingBody(HeadBody, EncodedMembers):
    """vLLM's; without `task` what the adapter is for."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "sentiment", "input": ["I love this film."]}]}
    )

    input: Inputs
    task: PoolingTask | None = None


Side = str | list[str]


class ScoreBody(HeadBody):
    """vLLM's, in each of its spellings."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"text_1": "Where is my card?", "text_2": ["It is late."]}]}
    )

    text_1: Side = Field(
        validation_alias=AliasChoices("text_1", "data_1", "queries"),
        description="One text, or as many as text_2 has. Also data_1 or queries.",
    )
    text_2: Side = Field(
        validation_alias=AliasChoices("text_2", "data_2", "documents", "items"),
        description="Also data_2, documents or items.",
    )

    def pairs(self) -> list[tuple[str, str]]:
        """Raises Refusal."""
        first, second = _texts("text_1", self.text_1), _texts("text_2", self.text_2)
        if len(first) == 1:
            first *= len(second)
        if len(first) != len(second):
            reason = f"has {len(first)} texts, and text_2 {len(second)}: send one, or as many"
            raise invalid("text_1", reason)
        return list(zip(first, second, strict=True))


def _texts(name: str, side: Side) -> list[str]:
    texts = [side] if isinstance(side, str) else side
    if not texts:
        raise invalid(name, "is an empty list")
    if not all(texts):
        raise invalid(f"{name}[{texts.index('')}]", "is empty")
    return texts


def _content(name: str, **data: Any) -> dict[int | str, dict[str, Any]]:
    """A list in vLLM's shape. data: of its first item."""
    example = {
        "id": f"{name}-6f1c",
        "object": "list",
        "created": 1764115200,
        "model": "sentiment",
        "data": [{"index": 0, **data}],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    content = {"application/json": {"schema": LISTED, "example": example}}
    return {200: {"description": "A list in vLLM's shape.", "content": content}}


def _listed(
    name: str, request: Request, body: VllmBody, serving: Serving, ran: Ran, data: Sequence[Any]
) -> dict[str, Any]:
    """The answer around an answer's data."""
    return {
        "id": f"{name}-{body.request_id or request.state.request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": model_of(serving.runtime, ran),
        "data": [{"index": i, **one} for i, one in enumerate(data)],
        "usage": {
            "prompt_tokens": ran.token_count,
            "total_tokens": ran.token_count,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        },
    }


async def classified_input(
    request: Request,
    body: ClassifyInputBody,
    selection: Selection,
    caller: Caller,
    serving: Serving,
) -> Response:
    """POST /classify, as vLLM's clients send it: the best label, and all scores in their order."""
    if len(selection.adapters) > 1:
        raise invalid("adapter", "is given several times; with input there is one")
    selection = with_model(serving.runtime, selection, body.model)
    texts = body.as_texts(body.input.items)
    choice = await choose(serving.runtime, caller, selection, len(texts.items))
    if choice.lines[0][0].version.adapter.task == "tokens":
        raise invalid("model", "labels the words of a text: POST /classify with inputs does that")
    raw = body.activated is False
    scored = await head_scores(serving.runtime, caller, texts, choice, raw_scores=raw)
    data = [_label(scored, i) for i in range(len(scored.rows))]
    answer = _listed("classify", request, body, serving, scored.ran, data)
    return json_answer(answer, ran_headers(scored.ran))


def _label(scored: HeadScores, index: int) -> dict[str, Any]:
    row = scored.rows[index]
    label = scored.adapter.labels[int(row.argmax())]
    return {"label": label, "probs": row.numpy(), "num_classes": len(row)}


@router.post(
    "/score",
    response_class=Response,
    responses=_content("score", object="score", score=0.98) | ERRORS,
    openapi_extra=documented_body(ScoreBody),
)
@access("any key", model=True, dialect=PAIRS)
async def score_texts(
    request: Request,
    body: Annotated[ScoreBody, body_of(ScoreBody)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """One score a pair: by a head of one label, else the cosine of both texts' embeddings."""
    selection = with_model(serving.runtime, selection, body.model)
    pairs, raw = body.as_texts(body.pairs()), body.activated is False
    scored = await score_pairs(serving.runtime, caller, pairs, selection, raw_scores=raw)
    data = [{"object": "score", "score": score} for score in scored.scores]
    answer = _listed("score", request, body, serving, scored.ran, data)
    return json_answer(answer, ran_headers(scored.ran))


router.add_api_route("/v1/score", score_texts, methods=["POST"], include_in_schema=False)


@router.post(
    "/pooling",
    response_class=Response,
    responses=_content("pool", object="pooling", data=[0.0123]) | ERRORS,
    openapi_extra=documented_body(PoolingBody),
)
@access("any key", model=True, dialect=OPENAI)
async def pool(
    request: Request,
    body: Annotated[PoolingBody, body_of(PoolingBody)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """Whatever the adapter gives: an embedding, a head's scores, or those of each token."""
    runtime, texts = serving.runtime, body.as_texts(body.input.items)
    selection = with_model(runtime, selection, body.model)
    choice = await choose(runtime, caller, selection, len(texts.items))
    task = _task(body, choice.lines[0][0].version.adapter)
    match task:
        case "embed":
            normalize = body.activated if body.normalize is None else body.normalize
            wish = EmbedWish(normalize, dimensions=body.dimensions)
            embedded = await embed(runtime, caller, texts, choice, wish)
            ran, rows, headers = embedded.ran, embedded.ran.lines[0], embedded_headers(embedded)
        case "classify" | "token_classify":
            raw = body.activated is False
            scored = await head_scores(runtime, caller, texts, choice, raw_scores=raw)
            ran, rows, headers = scored.ran, scored.rows, ran_headers(scored.ran)
        case "token_embed":
            raise invalid("task", "is token_embed: POST /embed_all gives each token's state")
        case _:
            assert_never(task)
    data = [{"object": "pooling", "data": one} for one in encoded(rows, body.encoding_format)]
    return json_answer(_listed("pool", request, body, serving, ran, data), headers)


def _task(body: PoolingBody, adapter: Adapter) -> PoolingTask:
    """The body's, or what the adapter is for. Raises Refusal where it cannot do that."""
    by_adapter: dict[str, PoolingTask] = {"classify": "classify", "tokens": "token_classify"}
    own = by_adapter[adapter.task] if adapter.head else "embed"
    task = body.task or own
    if adapter.head and task in by_adapter.values() and task != own:
        raise invalid("task", f"is {task}; this adapter is for {own}")
    asked = [name for name in ("dimensions", "normalize") if getattr(body, name) is not None]
    if task != "embed" and asked:
        raise invalid(asked[0], f"is for embeddings, and the task is {task}")
    return task
