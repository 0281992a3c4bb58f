"""A text and others -> how near each of them is to it, by the cosine of their vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from app.inference.caller import Caller
from app.inference.choose import Selection
from app.inference.embed import EmbedWish, embed
from app.inference.read import Texts
from app.inference.run import Ran
from app.inference.runtime import Runtime


@dataclass(frozen=True, eq=False)
class Compared:
    """cosines[i]: of the source and the i-th sentence, -1 to 1."""

    ran: Ran
    cosines: list[float]


async def compare(
    runtime: Runtime,
    caller: Caller,
    texts: Texts,
    selection: Selection = Selection(),  # noqa: B008 - frozen
    prompt_name: str | None = None,
) -> Compared:
    """texts: the source, then the sentences. Raises what embed raises."""
    wish = EmbedWish(normalize=True, prompt_name=prompt_name)
    ran = (await embed(runtime, caller, texts, selection, wish)).ran
    source, *sentences = ran.lines[0]
    return Compared(ran, (torch.stack(sentences) @ source).tolist())
