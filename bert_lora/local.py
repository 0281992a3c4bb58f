"""The same calls without a server: the engine in this process. Nothing of it stays on the disk.

What a call may ask for is checked, and refused, by the routes' own bodies and dialects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, Unpack

import orjson
import torch
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from torch import Tensor

from app.adapters.files import adapter_folders
from app.api.adapter_object import describe
from app.api.dialect import NATIVE, Dialect
from app.api.errors import TABLE, refusal_of
from app.api.refusal import Refusal, invalid, validation_refusal
from app.api.routes.inference import ClassifyBody, EmbedBody
from app.api.routes.tei import RerankBody
from app.api.routes.uploads import UploadQuery
from app.api.tei_errors import TEI, TEXTS
from app.assemble import StartRefused, assemble
from app.catalog.change import Change
from app.catalog.install import Installer
from app.catalog.open_store import open_folder, receiving
from app.catalog.pointer import valid_name
from app.inference.caller import Caller
from app.inference.choose import Selection
from app.inference.classify import classify, score
from app.inference.embed import embed
from app.inference.metrics import Metrics
from app.inference.run import Ran
from app.inference.runtime import Runtime
from app.settings import Settings
from bert_lora.async_calls import Answer, AskPiece, AsyncCalls
from bert_lora.calls import Calls
from bert_lora.errors import Unreadable, refused_body
from bert_lora.loop import LoopThread
from bert_lora.options import (
    Adapter,
    Adapters,
    ClassifyOptions,
    EmbedOptions,
    PutOptions,
    RerankOptions,
    members,
    put_query,
)
from bert_lora.splitting import Piece
from bert_lora.uploads import upload_file

T = TypeVar("T")
AT_ONCE, PATIENCE_S = 4, 3600.0  # as many as the engine's threads have use for


class _Given(Settings):
    """Settings as they are given, whatever the process's variables say of a server."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


class LocalCalls(AsyncCalls):
    """The engine's calls, on the loop that opened them."""

    def __init__(
        self, model: str | None, device: str, dtype: Any, adapter: str | None = None
    ) -> None:
        super().__init__(adapter, AT_ONCE, PATIENCE_S)
        self._given = {"model": model, "device": device, "dtype": dtype}
        self._open = ExitStack()

    async def start(self) -> None:
        """Load the base. Raises Unreadable."""
        self.runtime, self.installer = await asyncio.to_thread(self._assemble)

    def _assemble(self) -> tuple[Runtime, Installer]:
        threads = torch.get_num_threads()
        folder = Path(self._open.enter_context(TemporaryDirectory(prefix="bert-lora-")))
        try:
            settings = _Given(store=folder, **self._given)
            store = self._open.enter_context(open_folder(folder))
            runtime, installer = assemble(settings, Metrics(), store)
        except (StartRefused, ValidationError) as error:
            self._open.close()
            raise Unreadable(str(error)) from None
        finally:
            torch.set_num_threads(threads)  # the caller's own
        runtime.engine.start()
        self._open.callback(runtime.engine.stop)
        return runtime, installer

    async def close(self) -> None:
        """End the engine's threads."""
        await asyncio.to_thread(self._open.close)

    async def most_texts(self) -> int:
        """How many texts one call of the engine may have."""
        return self.runtime.max_inputs

    async def hidden(self) -> int:
        """How wide the base's vectors are."""
        return self.runtime.engine.encoder.base.hidden

    def embedding(self, options: EmbedOptions) -> AskPiece:
        """What answers a piece with vectors."""

        async def answered(piece: Piece) -> Answer:
            body = EmbedBody(**_inputs(piece, options))
            texts = body.as_texts(body.inputs.items)
            selection = self._selection(options, body.adapters)
            embedded = await embed(self.runtime, Caller(), texts, selection, body.wish())
            rows: Tensor = torch.stack(embedded.ran.lines[0])
            return Answer(rows.numpy(), ", ".join(embedded.spaces))

        return lambda piece: told(answered(piece), TEI)

    def labelling(self, options: ClassifyOptions) -> AskPiece:
        """What answers a piece with labels."""

        async def answered(piece: Piece) -> Answer:
            body = ClassifyBody(**_inputs(piece, options))
            texts = body.as_texts(body.inputs.items)
            selection = self._selection(options, body.adapters)
            classified = await classify(self.runtime, Caller(), texts, selection, body.wish())
            return Answer(classified.answers[0], _stamp(classified.ran))

        return lambda piece: told(answered(piece), NATIVE)

    def scoring(self, query: str, options: RerankOptions) -> AskPiece:
        """What answers a piece with one score for each text."""

        async def answered(piece: Piece) -> Answer:
            body = RerankBody(query=query, **_texts(piece, options))
            if "" in body.texts:
                raise invalid(f"texts[{body.texts.index('')}]", "is empty", "empty")
            pairs = body.as_texts([(body.query, text) for text in body.texts])
            selection = self._selection(options, None)
            scored = await score(
                self.runtime, Caller(), pairs, selection, raw_scores=body.raw_scores
            )
            return Answer(scored.scores, _stamp(scored.ran))

        return lambda piece: told(answered(piece), TEXTS)

    def _selection(self, options: Any, per_text: Any) -> Selection:
        adapter = None if per_text is not None else options.get("adapter") or self.adapter
        return Selection(() if adapter is None else (adapter,), per_text)

    async def put(self, name: str, source: Any, **options: Unpack[PutOptions]) -> Adapter:
        """As AsyncCalls.put."""

        async def installed(file: Path) -> Adapter:
            if not valid_name(name):
                raise Refusal(422, "validation", f"{name!r} is no adapter name")
            how = UploadQuery(**put_query(options)).how(lambda _: None, Change("put"))
            async with receiving(self.installer.store) as folder:
                done = await self.installer.install_body(name, folder, file, how)
            report = done.report.to_json()
            if done.name is None:
                return _json({"name": name, **report, "dry_run": True})
            return _json(describe(done.name, self.runtime.registry) | report)

        with ExitStack() as made:
            file = await asyncio.to_thread(made.enter_context, upload_file(source))
            return await told(installed(file), NATIVE)

    async def list(self) -> Adapters:
        """The adapters that are served, by name."""
        registry = self.runtime.registry
        return [_json(describe(registry.names[name], registry)) for name in sorted(registry.names)]

    async def delete(self, name: str) -> None:
        """Stop serving the name."""
        await told(self.installer.remove(name, lambda _: None, Change("delete")), NATIVE)


class Local(Calls):
    """The engine in this process: embed, classify, rerank, put, list, delete. Made by load()."""


def load(
    model: str | None = None,
    adapters: Mapping[str, Any] | str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    adapter: str | None = None,
) -> Local:
    """Load a base and adapters into this process.

    model: a folder or a hub's id; None: the embedded all-MiniLM-L6-v2. adapters: name -> what put
    takes; or a folder that holds adapters' folders. device, dtype: as BERT_LORA_DEVICE and
    BERT_LORA_DTYPE. adapter: of calls that name none.
    Raises Unreadable, Refused.
    """
    loop = LoopThread()
    core = LocalCalls(model, device, dtype, adapter)
    try:
        loop.run(core.start())
        local = Local(core, loop)
        if isinstance(adapters, str | Path):
            adapters = {name: Path(adapters) / name for name in adapter_folders(Path(adapters))}
        for name, source in sorted((adapters or {}).items()):
            local.put(name, source)
    except BaseException:
        loop.run(core.close())
        loop.close()
        raise
    return local


def _inputs(piece: Piece, options: Any) -> dict[str, Any]:
    """The body that HTTP would carry."""
    inputs = [list(text) if isinstance(text, tuple) else text for text in piece.texts]
    return {"inputs": inputs, "adapters": piece.adapters, **members(options)}


def _texts(piece: Piece, options: Any) -> dict[str, Any]:
    return {"texts": list(piece.texts), **members(options)}


def _json(adapter: Adapter) -> Adapter:
    """As JSON would carry it: lists for tuples."""
    return dict(orjson.loads(orjson.dumps(adapter)))


def _stamp(ran: Ran) -> str:
    return ", ".join(chosen.stamp for chosen in ran.choice.distinct)


REFUSED: tuple[type[Exception], ...] = (*TABLE, Refusal)


async def told(call: Awaitable[T], dialect: Dialect) -> T:
    """What the call gives; what it raises is raised as it would be over HTTP."""
    try:
        return await call
    except ValidationError as error:
        faults = error.errors()
        refusal = validation_refusal(faults, len(faults))
    except REFUSED as error:
        refusal = refusal_of(error, {"state": {"dialect": dialect}, "type": "http"})
    answer = dialect.answer(refusal, "")
    raise refused_body(answer.status_code, bytes(answer.body), answer.headers)
