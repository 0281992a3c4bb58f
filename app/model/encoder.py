"""The frozen base: load, refuse what would be served wrong, run packed batches, give hidden states.

Keeps transformers' model and changes two things in it: the attention function (attention.py) and
every Linear (lora.py). Knows no names of adapters and no clients.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from app.adapters.base import Base
from app.adapters.config.labels import base_classifier
from app.adapters.config.sentence import Sentence
from app.adapters.values import Adapter
from app.model import attention, head
from app.model.base_files import BaseFiles, BaseRefused, head_tensors
from app.model.batch import Batch, pack, segments
from app.model.delta import BASE_LAYERS, Layers
from app.model.fast_paths import try_paths
from app.model.lora import LinearWithLoRA, Route, insert_lora
from app.model.machine import first_line
from app.model.sequence import Sequence, Want
from app.model.version import Version

SERVED = (
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "distilbert",
    "electra",
    "albert",
    "modernbert",
)
WHY_NOT = dict.fromkeys(
    ("deberta-v2", "mpnet"),
    "its attention does not go through transformers' attention interface, so packed sequences would "
    "see each other",
)
POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")  # first position: pad id + 1
TRIED_TOKENS = 16  # of the forward that is tried at start
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(eq=False)
class Encoder:
    """One frozen base. Several threads may run it, each its own batch.

    version: the base itself, for sequences that no adapter changes; its digest is sha256 over every
    parameter and buffer at load. max_length: tokens per sequence. slow_paths: see FastPaths.slow.
    """

    model: nn.Module
    files: BaseFiles
    base: Base
    device: torch.device
    dtype: torch.dtype
    max_length: int
    vocabulary: int
    wrappers: dict[str, LinearWithLoRA]
    route: Route
    version: Version
    slow_paths: Mapping[str, str]
    _frozen: list[tuple[str, Tensor]]
    _first_position: int
    _takes_types: bool
    _pooler: LinearWithLoRA | None = field(default=None)
    _varlen: bool = False

    @property
    def digest(self) -> str:
        """The base's, as it was at load."""
        return self.version.digest

    @property
    def type_vocabulary(self) -> int:
        """How many token types it knows; 0: it takes none."""
        found = (n for path, (n, _) in self.base.embeddings.items() if "token_type" in path)
        return next(found, 0) if self._takes_types else 0

    @property
    def _padding(self) -> int | None:
        """The padding id where it takes no position of its own."""
        return self._first_position - 1 if self._first_position else None

    def sentence(self, adapter: Adapter | None) -> Sentence:
        """How texts become vectors: the adapter's own way, and the base's where it says nothing."""
        mine = self.files.sentence
        said = mine if adapter is None else adapter.sentence.over(mine)
        return replace(said, max_length=min(said.max_length or self.max_length, self.max_length))

    @torch.inference_mode()
    def run(
        self, sequences: list[Sequence], between: Callable[[], None] = lambda: None
    ) -> list[Tensor]:
        """Embeddings or logits (float32, on the CPU), one per sequence, in their order.

        between: called before each Linear; it may run other sequences first, or raise to give these up.
        """
        batch = pack(sequences, self.device, self._padding)
        hidden = self._forward(batch, between).last_hidden_state[0]
        rows = head.answers(hidden, batch, self._pool if self._pooler else None)
        ordered: list[Tensor | None] = [None] * len(sequences)
        for place, row in zip(batch.order, rows, strict=True):
            ordered[place] = row
        return [row for row in ordered if row is not None]

    def _forward(
        self, batch: Batch, between: Callable[[], None] = lambda: None, **more: Any
    ) -> Any:
        if self._takes_types:
            more["token_type_ids"] = batch.token_type_ids
        if self._varlen:
            more["ends"] = batch.ends()
        with self.route.run(batch.segments, between):
            return self.model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids + self._first_position,
                runs=batch.runs,
                **more,
            )

    def _pool(self, rows: Tensor, sequences: list[Sequence]) -> Tensor:
        """The base's pooler over first-token rows [S, H], each through its sequence's layers."""
        with self.route.run(segments(sequences, [1] * len(sequences))):
            return torch.tanh(self._pooler(rows))  # type: ignore[misc]

    @torch.inference_mode()
    def states(self, ids: Iterable[int], layers: Layers = BASE_LAYERS) -> States:
        """One text's hidden states, through an adapter's layers or the plain base."""
        tokens, version = list(ids), replace(self.version, layers=layers)
        text = Sequence(tokens, [0] * len(tokens), Want("embedding", normalize=False), version)
        out = self._forward(pack([text], self.device, self._padding), output_hidden_states=True)
        last = out.last_hidden_state[0]
        ends = [last.flatten()]
        if self._pooler is not None:
            ends.append(self._pool(last[:1], [text])[0])
        return States([h[0].double() for h in out.hidden_states[1:]], torch.cat(ends).double())

    def digest_now(self) -> str:
        """The digest again, over the tensors as they are; packed copies are compared with them."""
        if not all(w.frozen.intact() for w in self.wrappers.values()):
            return "a packed copy differs from its weight"
        return _digest(self._frozen)


@dataclass(frozen=True, eq=False)
class States:
    """float64. layers: [T, H] after each; out: the last one and, where there is one, the pooler's."""

    layers: list[Tensor]
    out: Tensor


@dataclass(frozen=True)
class Delta:
    """relative: ||out(adapter) - out(base)|| / ||out(base)||; layers: the same per layer."""

    relative: float
    layers: list[float]


def distance(changed: States, base: States) -> Delta:
    """How far an adapter moves the base on one text: relative L2 distance of the hidden states."""
    per_layer = [_relative(c, b) for c, b in zip(changed.layers, base.layers, strict=True)]
    return Delta(_relative(changed.out, base.out), per_layer)


def _relative(changed: Tensor, base: Tensor) -> float:
    return float((changed - base).norm() / base.norm())


def load_encoder(files: BaseFiles, device: torch.device, dtype: torch.dtype) -> Encoder:
    """Load the base frozen and ready for packed batches. Raises BaseRefused with the reason."""
    config = _config(files)
    model = _load_model(files, config, dtype)
    model = model.to(device).eval().requires_grad_(False)
    frozen = [*model.named_parameters(), *model.named_buffers()]
    has_pooler = getattr(model, "pooler", None) is not None
    base = _base(files, model, config, has_pooler)
    paths = try_paths(config, device, dtype, set(base.linears.values()))
    route = Route(paths.kernels_on)
    wrappers = insert_lora(model, route)
    pooler = next((wrappers[p] for p in ("pooler.dense", "pooler") if p in wrappers), None)
    if pooler is not None:
        model.pooler = None  # run over the sequences' first tokens instead, in _pool
    first = config.pad_token_id + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0
    positions = config.max_position_embeddings - first
    encoder = Encoder(
        model,
        files,
        base,
        device,
        dtype,
        min(files.sentence.max_length or positions, positions),
        config.vocab_size,
        wrappers,
        route,
        Version(_digest(frozen), Adapter({}, layout="base"), {}, BASE_LAYERS),
        paths.slow,
        frozen,
        first,
        "token_type_ids" in inspect.signature(type(model).forward).parameters,
        pooler,
        paths.varlen,
    )
    _try_forward(encoder)
    return encoder


def _try_forward(encoder: Encoder) -> None:
    """Through the base, here and not in the first request. Raises BaseRefused."""
    try:
        encoder.states(range(min(TRIED_TOKENS, encoder.max_length, encoder.vocabulary)))
    except Exception as error:  # whatever torch, an operator or a driver raises
        what = f"{encoder.files.id} in {encoder.dtype} does not run on {encoder.device}"
        raise BaseRefused(f"{what}: {first_line(error)}") from error


def _load_model(files: BaseFiles, config: Any, dtype: torch.dtype) -> Any:
    """transformers' own model with our attention; without its pooler where the files have none."""
    attention.register()
    try:
        model, report = AutoModel.from_pretrained(
            files.folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=attention.NAME,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BaseRefused(
            f"{files.id} cannot be loaded: {first_line(error)} (weights must be safetensors; a .bin is a pickle "
            "and never opened)"
        ) from None
    missing = {str(k) for k in report["missing_keys"]} | {
        str(k[0]) for k in report["mismatched_keys"]
    }
    lost = sorted(k for k in missing if not k.startswith("pooler."))
    if lost:
        raise BaseRefused(
            f"{files.id} lacks {', '.join(lost[:5])}: it would be served with random weights"
        )
    if missing:
        model.pooler = None
    return model


def _config(files: BaseFiles) -> Any:
    try:
        config = AutoConfig.from_pretrained(files.folder)
    except (OSError, ValueError, KeyError) as error:
        raise BaseRefused(f"{files.id} has no readable config.json: {error}") from None
    kind = config.model_type
    if kind not in SERVED:
        why = WHY_NOT.get(kind, f"served are {', '.join(SERVED)}")
        raise BaseRefused(f"{files.id} is a {kind} model, which cannot be served right: {why}")
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise BaseRefused(f"{files.id} is a decoder; an encoder is needed")
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        raise BaseRefused(
            f"{files.id} has relative positions, which transformers no longer computes"
        )
    if getattr(config, "quantization_config", None):
        raise BaseRefused(f"{files.id} is quantised; its plain weights are needed")
    return config


def _base(files: BaseFiles, model: Any, config: Any, has_pooler: bool) -> Base:
    modules = dict(model.named_modules())
    linears = {p: m for p, m in modules.items() if isinstance(m, nn.Linear)}
    embeddings = {p: m for p, m in modules.items() if isinstance(m, nn.Embedding)}
    norms = {p: m for p, m in modules.items() if isinstance(m, nn.LayerNorm)}
    own_head = head_tensors(files.folder)
    return Base(
        model_type=config.model_type,
        prefix=model.base_model_prefix,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        linears={p: (m.out_features, m.in_features) for p, m in linears.items()},
        embeddings={p: (m.num_embeddings, m.embedding_dim) for p, m in embeddings.items()},
        norms={p: m.normalized_shape[0] for p, m in norms.items()},
        tensors=dict(model.named_parameters()),
        head=own_head,
        has_pooler=has_pooler,
        classifier_pooling=getattr(config, "classifier_pooling", "cls"),
        classifier_activation=getattr(config, "classifier_activation", "gelu"),
        norm_eps=getattr(config, "norm_eps", 1e-5),
        classifier=base_classifier(
            config.architectures, config.id2label, config.problem_type, own_head
        ),
    )


def _digest(tensors: list[tuple[str, Tensor]]) -> str:
    """sha256 over every tensor's name, dtype, shape and bytes, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
