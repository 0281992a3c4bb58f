"""The members that vLLM's bodies have in common: honoured, or refused by their name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from app.api.inputs import TextsBody
from app.engine.tokenizer import Input
from app.engine.windows import Direction
from app.inference.read import Texts


def _some(count: int) -> int:
    if not count:
        raise ValueError("is 0: of a text something has to stay")
    return count


class VllmMembers(TextsBody):
    """Of OpenAI's calls as vLLM extends them, and of vLLM's own."""

    truncate_prompt_tokens: Annotated[int, Field(ge=-1), AfterValidator(_some)] | None = Field(
        None,
        description="Cut to so many tokens, the special ones (which stay) counted; -1: to as many "
        "as the model takes.",
    )
    truncation_side: Direction | None = Field(None, description="As truncation_direction.")
    add_special_tokens: Literal[True] = Field(True, description="Texts always get them.")
    padding: Literal["do_not_pad"] = Field("do_not_pad", description="Nothing is padded.")
    priority: Literal[0] = Field(0, description="The header X-Priority has this.")
    user: str | None = Field(None, description="Not read.")
    cache_salt: str | None = Field(None, description="Not read: no answer is kept.")
    request_id: str | None = Field(None, max_length=128, description="Where the answer has an id.")

    def as_texts(self, items: Sequence[Input]) -> Texts:
        """The items, to be read so."""
        count = self.truncate_prompt_tokens
        return Texts(
            items,
            self.truncate or count is not None,
            self.truncation_side or self.truncation_direction,
            self.shortened,
            max_tokens=None if count == -1 else count,
        )


class EncodedMembers(TextsBody):
    """Of bodies that ask for vectors."""

    encoding_format: Literal["float", "base64"] = "float"
    embed_dtype: Literal["float32"] = "float32"
    endianness: Literal["native", "little"] = "native"
    dimensions: int | None = Field(None, ge=1, description="Keep only the first ones.")
    normalize: bool | None = Field(None, description="Scale each embedding to length 1.")


class VllmBody(VllmMembers):
    """Of vLLM's own calls, which refuse what is too long."""

    model: str | None = Field(
        None, description="base-id, adapter or base-id:adapter, each also with @version."
    )
    truncate: bool = Field(False, description="Cut what is too long; false: refuse it.")
