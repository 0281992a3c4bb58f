"""embed, classify and rerank of many texts: split, sent side by side, put in order again.

What one piece is answered by is a subclass's: a server (async_client.py) or the engine (local.py).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from bert_lora.errors import MixedVersions, Refused
from bert_lora.options import (
    Adapter,
    Adapters,
    ClassifyOptions,
    EmbedOptions,
    Labels,
    PutOptions,
    RerankOptions,
)
from bert_lora.pacing import Pace
from bert_lora.progress import Bar
from bert_lora.splitting import Piece, Text, pieces

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
TOO_LARGE = ("payload_too_large", "too_many_inputs")


@dataclass(frozen=True)
class Answer:
    """rows: one for each text of a piece: an array [n, H], or a list. stamp: which version, as the
    server spells it.
    """

    rows: Any
    stamp: str


AskPiece = Callable[[Piece], Awaitable[Answer]]


class AsyncCalls(ABC):
    """adapter: of calls that name none; None: the base."""

    def __init__(self, adapter: str | None, at_once: int, patience_s: float) -> None:
        self.adapter = adapter
        self.pace = Pace(at_once, patience_s)

    async def embed(
        self,
        texts: str | Sequence[Text],
        *,
        progress: bool = False,
        **options: Unpack[EmbedOptions],
    ) -> NDArray[np.float32]:
        """Vectors [N, H] in the texts' order; [H] of a text that comes bare. Raises BertLoraError.

        progress: a bar on stderr.
        """
        import numpy as np

        if isinstance(texts, str):
            vector: NDArray[np.float32] = (await self.embed([texts], **options))[0]
            return vector
        answers = await self._all(texts, options, self.embedding(options), progress)
        if answers:
            return np.concatenate([answer.rows for answer in answers])
        return np.empty((0, options.get("dimensions") or await self.hidden()), np.float32)

    async def classify(
        self,
        texts: str | Sequence[Text],
        *,
        progress: bool = False,
        **options: Unpack[ClassifyOptions],
    ) -> Any:
        """A list of each text's labels, best first, `[{"label", "score"}, …]`, or of its words.

        A text that comes bare gets its labels alone. Raises BertLoraError.
        """
        if isinstance(texts, str):
            return (await self.classify([texts], **options))[0]
        answers = await self._all(texts, options, self.labelling(options), progress)
        labels: list[Labels] = [row for answer in answers for row in answer.rows]
        return labels

    async def rerank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_n: int | None = None,
        progress: bool = False,
        **options: Unpack[RerankOptions],
    ) -> list[dict[str, Any]]:
        """`[{"index", "score"}, …]` of the texts, best first. Raises BertLoraError."""
        answers = await self._all(texts, options, self.scoring(query, options), progress)
        scores: list[float] = [row for answer in answers for row in answer.rows]
        best = sorted(enumerate(scores), key=lambda place: -place[1])[:top_n]
        return [{"index": i, "score": score} for i, score in best]

    async def piece(self, piece: Piece, ask: AskPiece) -> list[Answer]:
        """The piece's answers in order: one, or several where it was too large for one request."""
        try:
            return [await self.pace.run(lambda: ask(piece))]
        except Refused as error:
            if error.code not in TOO_LARGE or len(piece.texts) == 1:
                raise error.behind(piece.start) from None
        first, second = piece.halves()
        return [*await self.piece(first, ask), *await self.piece(second, ask)]

    async def _all(
        self, texts: Sequence[Text], options: Any, ask: AskPiece, progress: bool
    ) -> list[Answer]:
        """In the texts' order. Raises MixedVersions."""
        adapter = options.get("adapter", self.adapter)
        per_text = None if adapter is None or isinstance(adapter, str) else list(adapter)
        most = await self.most_texts()
        with Bar(len(texts), shown=progress) as bar:

            async def one(piece: Piece) -> list[Answer]:
                answers = await self.piece(piece, ask)
                bar.add(len(piece.texts))
                return answers

            rows = await all_of(one(piece) for piece in pieces(texts, most, per_text))
        answers = [answer for row in rows for answer in row]
        if per_text is None:
            one_version([answer.stamp for answer in answers])
        return answers

    @abstractmethod
    async def most_texts(self) -> int:
        """How many texts one request may have."""

    @abstractmethod
    async def hidden(self) -> int:
        """How wide the base's vectors are."""

    @abstractmethod
    def embedding(self, options: EmbedOptions) -> AskPiece:
        """What answers a piece with vectors."""

    @abstractmethod
    def labelling(self, options: ClassifyOptions) -> AskPiece:
        """What answers a piece with labels."""

    @abstractmethod
    def scoring(self, query: str, options: RerankOptions) -> AskPiece:
        """What answers a piece with one score for each text."""

    @abstractmethod
    async def put(self, name: str, source: Any, **options: Unpack[PutOptions]) -> Adapter:
        """Serve an adapter by that name, or replace it; the answer is the adapter object.

        source: a PEFT folder, a file (.safetensors, tar, zip), a PEFT model, or a module that holds
        trained LoRA tensors. Raises BertLoraError.
        """

    @abstractmethod
    async def list(self) -> Adapters:
        """All adapters that the key may use, by name."""

    @abstractmethod
    async def delete(self, name: str) -> None:
        """Stop serving the name."""

    @abstractmethod
    async def close(self) -> None:
        """Nothing can be asked after this."""


def one_version(stamps: Iterable[str]) -> None:
    """Raises MixedVersions where there are several."""
    different = sorted(set(stamps))
    if len(different) > 1:
        raise MixedVersions(
            f"the adapter changed during the call; the answers are of {' and '.join(different)}: "
            "ask again, or name one version (adapter='name@version')"
        )


async def all_of(calls: Iterable[Awaitable[T]]) -> list[T]:
    """What they answer, in their order. The first that fails ends the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
