"""vLLM's /detokenize, and its half of /tokenize (routes/tei_tokens.py)."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import ConfigDict, Field

from app.api.access import access
from app.api.answer import json_answer
from app.api.body import JsonBody, body_of, documented_body
from app.api.caller import Called
from app.api.choosing import SelectedOne, with_model
from app.api.inputs import Text
from app.api.openai_errors import OPENAI
from app.api.refusal import invalid
from app.api.serving import Served, Serving
from app.engine.windows import LOOK
from app.inference.caller import Caller
from app.inference.choose import Selection, choose

router = APIRouter(tags=["vllm"])
ERRORS = OPENAI.documented(404, 413, 415, 503)
PROMPT = {"type": "object", "required": ["prompt"], "properties": {"prompt": {"type": "string"}}}
TOKENS = {
    "type": "object",
    "required": ["count", "max_model_len", "tokens"],
    "properties": {
        "count": {"type": "integer"},
        "max_model_len": {"type": "integer"},
        "tokens": {"type": "array", "items": {"type": "integer"}},
        "token_strs": {"type": ["array", "null"], "items": {"type": "string"}},
    },
}


def _answers(description: str, schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": schema}}
    return {200: {"description": description, "content": content}} | ERRORS


class _ModelBody(JsonBody):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="Whose tokens: the base's, whichever it is.")


class PromptBody(_ModelBody):
    """vLLM's; the prompt is not cut."""

    prompt: Text
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeBody(_ModelBody):
    """vLLM's."""

    tokens: list[int] = Field(max_length=LOOK, fail_fast=True)


async def tokenized_prompt(
    body: PromptBody, selection: Selection, caller: Caller, serving: Serving
) -> Response:
    """POST /tokenize with vLLM's `prompt`."""
    if body.shortened or len(body.prompt) > LOOK:
        raise invalid("prompt", f"is over the {LOOK:,} characters that are tokenized at once")
    max_length = await _max_length(body, selection, caller, serving)
    tokenizer = serving.runtime.tokenizer

    def work() -> dict[str, Any]:
        [encoded] = tokenizer.backend.encode_batch([body.prompt], add_special_tokens=False)
        ids = tokenizer.single.ids([encoded.ids]) if body.add_special_tokens else encoded.ids
        strings = [tokenizer.backend.id_to_token(i) for i in ids]
        return {
            "count": len(ids),
            "max_model_len": max_length,
            "tokens": ids,
            "token_strs": strings if body.return_token_strs else None,
        }

    return json_answer(await asyncio.to_thread(work), {})


@router.post(
    "/detokenize",
    response_class=Response,
    responses=_answers("The text.", PROMPT),
    openapi_extra=documented_body(DetokenizeBody),
)
@access("any key", dialect=OPENAI)
async def detokenize(
    body: Annotated[DetokenizeBody, body_of(DetokenizeBody)],
    selection: SelectedOne,
    caller: Called,
    serving: Served,
) -> Response:
    """The text of token ids, special tokens too."""
    await _max_length(body, selection, caller, serving)
    tokenizer = serving.runtime.tokenizer
    if not all(0 <= token < tokenizer.vocabulary for token in body.tokens):
        raise invalid("tokens", f"holds an id outside of 0 to {tokenizer.vocabulary - 1}")
    text = await asyncio.to_thread(tokenizer.fast.decode, body.tokens)
    return json_answer({"prompt": text}, {})


async def _max_length(
    body: _ModelBody, selection: Selection, caller: Caller, serving: Serving
) -> int:
    """In tokens, of whichever adapter is asked for. Raises what choose raises."""
    runtime = serving.runtime
    choice = await choose(runtime, caller, with_model(runtime, selection, body.model), 1)
    return runtime.sentence(choice.lines[0][0].version).max_length or 0
