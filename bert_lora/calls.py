"""The calls that a server and the engine in this process have in common, for plain code.

They are those of async_calls.py, run by a loop in a thread of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from bert_lora.async_calls import Answer, AskPiece, AsyncCalls, one_version
from bert_lora.loop import LoopThread
from bert_lora.options import (
    Adapter,
    Adapters,
    ClassifyOptions,
    EmbedOptions,
    Labels,
    PutOptions,
    RerankOptions,
)
from bert_lora.splitting import Piece, Text, pieces

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
Options = TypeVar("Options", EmbedOptions, ClassifyOptions)


class Calls:
    """Thread-safe. Ends with close(), as a context manager, or with the process."""

    def __init__(self, core: AsyncCalls, loop: LoopThread) -> None:
        self.core, self._loop = core, loop

    def embed(
        self,
        texts: str | Sequence[Text],
        *,
        progress: bool = False,
        **options: Unpack[EmbedOptions],
    ) -> NDArray[np.float32]:
        """Vectors [N, H] in the texts' order; [H] of a text that comes bare. Raises BertLoraError.

        progress: a bar on stderr.
        """
        return self._run(self.core.embed(texts, progress=progress, **options))

    def classify(
        self,
        texts: str | Sequence[Text],
        *,
        progress: bool = False,
        **options: Unpack[ClassifyOptions],
    ) -> Any:
        """A list of each text's labels, best first, `[{"label", "score"}, …]`, or of its words.

        A text that comes bare gets its labels alone. Raises BertLoraError.
        """
        return self._run(self.core.classify(texts, progress=progress, **options))

    def rerank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_n: int | None = None,
        progress: bool = False,
        **options: Unpack[RerankOptions],
    ) -> list[dict[str, Any]]:
        """`[{"index", "score"}, …]` of the texts, best first. Raises BertLoraError."""
        return self._run(self.core.rerank(query, texts, top_n=top_n, progress=progress, **options))

    def embed_each(
        self, texts: Iterable[Text], **options: Unpack[EmbedOptions]
    ) -> Iterator[tuple[Sequence[Text], NDArray[np.float32]]]:
        """(texts, their vectors), some hundred at a time and in order, of more than memory holds.

        `adapter` is one for all. Raises BertLoraError.
        """
        return self.each(texts, self.core.embedding(_one(options)), set())

    def classify_each(
        self, texts: Iterable[Text], **options: Unpack[ClassifyOptions]
    ) -> Iterator[tuple[Sequence[Text], list[Labels]]]:
        """(texts, their labels), as embed_each."""
        return self.each(texts, self.core.labelling(_one(options)), set())

    def put(self, name: str, source: Any, **options: Unpack[PutOptions]) -> Adapter:
        """Serve an adapter by that name, or replace it; the answer is the adapter object.

        source: a PEFT folder, a file (.safetensors, tar, zip), a PEFT model, or a module that holds
        trained LoRA tensors. The same bytes again change nothing. Raises BertLoraError.
        """
        return self._run(self.core.put(name, source, **options))

    def list(self) -> Adapters:
        """All adapters that the key may use, by name."""
        return self._run(self.core.list())

    def delete(self, name: str) -> None:
        """Stop serving the name."""
        self._run(self.core.delete(name))

    def close(self) -> None:
        """Nothing can be asked after this."""
        self._run(self.core.close())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(call)

    def each(
        self, texts: Iterable[Text], ask: AskPiece, stamps: set[str]
    ) -> Iterator[tuple[Sequence[Text], Any]]:
        """(texts, what each piece of them was answered), in order.

        The texts are read in this thread, no further ahead than requests may be under way. stamps:
        the versions that have answered, filled on the way. Raises BertLoraError.
        """
        most = self._run(self.core.most_texts())
        asked: deque[tuple[Piece, Future[list[Answer]]]] = deque()

        def answered() -> Iterator[tuple[Sequence[Text], Any]]:
            piece, future = asked.popleft()
            start = 0
            for answer in future.result():
                one_version([*stamps, answer.stamp])
                stamps.add(answer.stamp)
                yield piece.texts[start : start + len(answer.rows)], answer.rows
                start += len(answer.rows)

        unread: Exception | None = None
        made = pieces(texts, most)
        try:
            while True:
                try:
                    piece = next(made)
                except StopIteration:
                    break
                except Exception as error:  # what was read before it is answered first
                    unread = error
                    break
                asked.append((piece, self._loop.submit(self.core.piece(piece, ask))))
                while asked and (len(asked) >= 2 * self.core.pace.most or asked[0][1].done()):
                    yield from answered()
            while asked:
                yield from answered()
            if unread is not None:
                raise unread
        finally:
            for _, future in asked:
                future.cancel()


def _one(options: Options) -> Options:
    """Options with one adapter at most. Raises TypeError."""
    if not isinstance(options.get("adapter"), str | None):
        raise TypeError("adapter is one for all texts here")
    return options
