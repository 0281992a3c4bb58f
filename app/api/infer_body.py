"""A body of the open inference protocol (KServe v2): JSON, and tensors as bytes behind it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import ConfigDict, Field, WithJsonSchema

from app.adapters.sentence import Pooling
from app.api.body import ON_LOOP_BYTES, JsonBody, checked_json, most_of, receive_body
from app.api.inputs import Prompt, TextsBody, whole_characters
from app.api.refusal import Refusal, invalid
from app.api.serving import Serving
from app.inference.embed import EmbedWish
from app.inference.read import Texts

JSON_LENGTH = "inference-header-content-length"
MEDIA = ("", "application/json", "application/octet-stream")  # tritonclient names none
LENGTH_BYTES = 4  # before each string, little-endian
Output = Literal["embedding", "scores", "labels"]


class _Part(JsonBody):
    model_config = ConfigDict(extra="forbid", strict=True)


class BytesParameters(_Part):
    """Of an input."""

    binary_data_size: int | None = Field(None, ge=0, description="Its bytes behind the JSON.")


STRINGS = {"type": "array", "items": {"type": "string"}}
TEXTS = {"type": "array", "items": {"anyOf": [{"type": "string"}, STRINGS]}}  # as the shape says


class InputTensor(_Part):
    """Strings: in `data`, or as bytes behind the JSON."""

    name: Literal["text", "pair"]
    datatype: Literal["BYTES"]
    shape: list[int] = Field(min_length=1, max_length=2, description="[N] or [N, 1].")
    parameters: BytesParameters = BytesParameters()
    data: Annotated[list[Any], WithJsonSchema(TEXTS)] | None = None


class OutputParameters(_Part):
    """Of a requested output."""

    binary_data: bool | None = None


class RequestedOutput(_Part):
    """One of those that the model's metadata lists, or embedding."""

    name: Output
    parameters: OutputParameters = OutputParameters()


class InferParameters(TextsBody):
    """What one may say beside the tensors."""

    binary_data_output: bool = Field(False, description="Outputs as bytes, where none is named.")
    prompt: Prompt | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    pooling: Pooling | None = None
    dimensions: int | None = Field(None, ge=1)
    raw_scores: bool = Field(False, description="Logits, without the activation.")

    def wish(self) -> EmbedWish:
        """How vectors are wanted."""
        return EmbedWish(
            self.normalize, self.pooling, self.dimensions, self.prompt, self.prompt_name
        )


class InferBody(_Part):
    """The protocol's."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inputs": [
                        {
                            "name": "text",
                            "shape": [1],
                            "datatype": "BYTES",
                            "data": ["I love this film."],
                        }
                    ]
                }
            ]
        }
    )

    id: str | None = Field(None, max_length=128, description="Given back.")
    parameters: InferParameters = InferParameters()
    inputs: list[InputTensor] = Field(
        min_length=1, max_length=2, description="`text`, and `pair` for pairs of texts."
    )
    outputs: list[RequestedOutput] | None = Field(None, min_length=1, max_length=2)


@dataclass(frozen=True)
class Inference:
    """texts: the body's, or its pairs."""

    body: InferBody
    texts: Texts


async def read_inference(request: Request) -> Inference:
    """A route's dependency. Raises Refusal (400, 413, 415)."""
    raw, request.state.body_digest = await receive_body(request)
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media not in MEDIA:
        reason = f"send JSON, or JSON and tensors as application/octet-stream, not {media:.80}"
        raise Refusal(415, "unsupported_media_type", reason)
    serving: Serving = request.app.state.serving
    length = request.headers.get(JSON_LENGTH)
    if len(raw) <= ON_LOOP_BYTES:
        return parse_inference(raw, length, serving)
    return await asyncio.to_thread(parse_inference, raw, length, serving)


def parse_inference(raw: bytearray, length: str | None, serving: Serving) -> Inference:
    """length: the header that says where the JSON ends. Blocks. Raises Refusal."""
    runtime = serving.runtime
    end = _json_end(length, len(raw))
    most = most_of(runtime.max_inputs, runtime.engine.encoder.max_length)
    body = checked_json(raw[:end], lambda _: InferBody, most)
    tensors: dict[str, list[str]] = {}
    start = end
    for i, tensor in enumerate(body.inputs):
        count = _count(tensor, f"inputs[{i}].shape", runtime.max_inputs)
        size = tensor.parameters.binary_data_size
        if size is None:
            texts = _of_json(tensor, f"inputs[{i}].data")
        else:
            texts = _of_bytes(memoryview(raw)[start : start + size], size, f"inputs[{i}]", count)
            start += size
        if len(texts) != count:
            raise invalid(f"inputs[{i}].shape", f"is for {count} texts, and {len(texts)} came")
        if tensor.name in tensors:
            raise invalid(f"inputs[{i}].name", f"is {tensor.name} once more")
        tensors[tensor.name] = texts
    if start != len(raw):
        raise _malformed(f"{len(raw) - start} bytes are left behind the last tensor")
    return Inference(body, _joined(body, tensors))


def _malformed(reason: str) -> Refusal:
    return Refusal(400, "malformed", reason)


def _json_end(length: str | None, size: int) -> int:
    if length is None:
        return size
    if not (length.isascii() and length.isdigit() and len(length) < 12 and int(length) <= size):
        raise _malformed(f"Inference-Header-Content-Length is {length:.40}; {size} bytes came")
    return int(length)


def _count(tensor: InputTensor, name: str, most: int) -> int:
    if min(tensor.shape) < 1 or tensor.shape[1:] not in ([], [1]):
        raise invalid(name, f"is {tensor.shape}; it may be [N] or [N, 1]")
    if (count := math.prod(tensor.shape)) > most:
        reason = f"{count} inputs are over the {most} of one request (MAX_CLIENT_BATCH)"
        raise Refusal(413, "too_many_inputs", reason)
    return count


def _of_json(tensor: InputTensor, name: str) -> list[str]:
    if tensor.data is None:
        raise invalid(name, "is missing, and parameters.binary_data_size too")
    texts = []
    for i, item in enumerate(tensor.data):
        text = item[0] if isinstance(item, list) and len(item) == 1 else item
        if not isinstance(text, str):
            raise invalid(f"{name}[{i}]", "is no string")
        texts.append(_whole(text, f"{name}[{i}]"))
    return texts


def _whole(text: str, name: str) -> str:
    try:
        return whole_characters(text)
    except ValueError as error:
        raise invalid(name, str(error)) from None


def _of_bytes(block: memoryview, size: int, name: str, count: int) -> list[str]:
    """Strings, each behind its length; `count` of them at most are read."""
    if len(block) != size:
        raise _malformed(f"{name} is to have {size} bytes behind the JSON; {len(block)} came")
    texts: list[str] = []
    at = 0
    while at < size:
        begin = at + LENGTH_BYTES
        at = begin + int.from_bytes(block[at:begin], "little")
        if begin > size or at > size or len(texts) == count:
            raise _malformed(f"{name}: its {size} bytes are not {count} strings with their lengths")
        try:
            texts.append(str(block[begin:at], "utf-8"))
        except UnicodeDecodeError:
            raise invalid(f"{name}.data[{len(texts)}]", "is not UTF-8") from None
    return texts


def _joined(body: InferBody, tensors: dict[str, list[str]]) -> Texts:
    texts, pair = tensors.get("text"), tensors.get("pair")
    if texts is None:
        raise invalid("inputs", "has no tensor that is named text")
    if pair is not None and len(pair) != len(texts):
        raise invalid("inputs", f"has {len(texts)} in text, and {len(pair)} in pair")
    items: Sequence[Any] = texts if pair is None else list(zip(texts, pair, strict=True))
    how = body.parameters
    return Texts(items, how.truncate, how.truncation_direction, body.shortened)
