"""A base as transformers has it, before anything of ours is in it: from what an earlier start has
kept, or by transformers itself.

Knows files, modules and facts; knows no adapters and runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from app.adapters.base import Base
from app.adapters.config.labels import base_classifier
from app.model import kept_base
from app.model.base_files import BaseFiles, BaseRefused, head_tensors
from app.model.machine import first_line
from app.model.outline import Facts, Outline, outline_of
from app.model.written import Written, write_down


@dataclass(frozen=True, eq=False)
class PlainBase:
    """model: its layers; transformers' own, where written is None. name: under which it is kept."""

    files: BaseFiles
    facts: Facts
    model: nn.Module
    buffers: Mapping[str, Tensor]
    written: Written | None
    name: str | None
    outline: Outline | None

    def forward(self, longest: int, device: torch.device) -> Written:
        """What it computes, by now with placeholders in it (lora.insert_lora); kept for the next
        start. longest: tokens of a text. Raises BaseRefused.
        """
        if self.written is not None:
            return self.written
        try:
            written = write_down(self.model, longest, device)
        except Exception as error:  # whatever torch raises of a forward that it cannot write down
            raise BaseRefused(f"{self.files.id} cannot be served: {first_line(error)}") from error
        if self.name is not None and self.outline is not None:
            kept_base.keep(self.name, self.facts, self.outline, self.buffers, written)
        return written


def read_plain(files: BaseFiles, device: torch.device, dtype: torch.dtype) -> PlainBase:
    """The base, frozen, in that dtype. Raises BaseRefused."""
    name = kept_base.name_of(files.folder, dtype, device)
    kept = kept_base.read(name, files.folder, dtype, device) if name else None
    if kept is not None:
        facts, model, written, outline = kept.facts, kept.model, kept.written, None
    else:
        facts, model = _by_transformers(files, dtype)
        written, outline = None, outline_of(model, files.folder, dtype) if name else None
    model = model.to(device).eval().requires_grad_(False)
    buffers = dict(model.named_buffers())
    return PlainBase(files, facts, model, buffers, written, name, outline)


def _by_transformers(files: BaseFiles, dtype: torch.dtype) -> tuple[Facts, nn.Module]:
    from app.model.base_model import facts_of, load_model, read_config  # two seconds of imports

    config = read_config(files)
    model = load_model(files, config, dtype)
    return facts_of(model, config), model


def describe(files: BaseFiles, plain: PlainBase, has_pooler: bool) -> Base:
    """What an adapter has to fit: the model's layers by path, its weights and its own head."""
    facts, modules = plain.facts, dict(plain.model.named_modules())
    linears = {p: m for p, m in modules.items() if isinstance(m, nn.Linear)}
    embeddings = {p: m for p, m in modules.items() if isinstance(m, nn.Embedding)}
    norms = {p: m for p, m in modules.items() if isinstance(m, nn.LayerNorm)}
    own_head = head_tensors(files.folder)
    return Base(
        model_type=facts.model_type,
        prefix=facts.prefix,
        hidden=facts.hidden,
        layers=facts.layers,
        vocabulary=facts.vocabulary,
        linears={p: (m.out_features, m.in_features) for p, m in linears.items()},
        embeddings={p: (m.num_embeddings, m.embedding_dim) for p, m in embeddings.items()},
        norms={p: m.normalized_shape[0] for p, m in norms.items()},
        tensors=dict(plain.model.named_parameters()),
        head=own_head,
        has_pooler=has_pooler,
        classifier_pooling=facts.classifier_pooling,
        classifier_activation=facts.classifier_activation,
        norm_eps=facts.norm_eps,
        classifier=base_classifier(
            facts.architectures, facts.id2label, facts.problem_type, own_head
        ),
    )
