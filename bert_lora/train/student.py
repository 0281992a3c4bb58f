"""The base that is served, with PEFT's LoRA on it and a head: what is trained.

Plain transformers and PEFT. The layers below the first that is adapted are frozen, so their states
are computed once for each text and remembered.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig

from app.model.base_files import BaseFiles
from bert_lora.train.adapted import NO_HEAD, HeadKind, Sizes, adapted, last_linear, layers_of

MOST_REMEMBERED = 2 << 30  # bytes of states; beyond it every layer is computed each time
AGREES = 1e-4  # of the states' own size: where remembered states may differ from computed ones


@dataclass(frozen=True)
class Item:
    """One tokenized input. types: token types of a pair; None: zeros. firsts: where words begin, of
    the words that are tagged; words: which words these are.
    """

    ids: list[int]
    types: list[int] | None = None
    firsts: tuple[int, ...] = ()
    words: tuple[int, ...] = ()


class Remembered(nn.Module):
    """In place of the embeddings: the states that the layers above go on from."""

    states: Tensor

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """[B, N, H]."""
        return self.states


class Student:
    """model: PEFT's. head: its last Linear; None for vectors. cut: adapted layers start there."""

    def __init__(
        self,
        base: BaseFiles,
        kind: HeadKind,
        labels: Sequence[str],
        sizes: Sizes,
        device: torch.device,
    ) -> None:
        self.kind = kind
        config: dict[str, Any] = {}
        if kind is not NO_HEAD:
            names = dict(enumerate(labels))
            config = {"num_labels": len(labels), "problem_type": kind.problem}
            config |= {"id2label": names, "label2id": {name: i for i, name in names.items()}}
        plain, info = getattr(transformers, kind.model).from_pretrained(
            base.folder, output_loading_info=True, **config
        )
        body = plain if kind is NO_HEAD else plain.base_model
        self._place = layers_of(body)
        count = 0 if self._place is None else body.config.num_hidden_layers
        self.cut = max(0, count - (sizes.layers or (count + 1) // 2))
        self.model = adapted(plain, body, base.id, kind, sizes, self.cut, info["missing_keys"])
        self.model.to(device).eval()  # nothing is dropped, of the base or the adapter
        self.body: nn.Module = body
        self.config: PretrainedConfig = plain.config
        self.head = None if kind is NO_HEAD else last_linear(self.model, plain)
        self.padding = self.config.pad_token_id or 0
        self.device = device
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self._states: dict[int, Tensor] = {}

    @property
    def remembers(self) -> bool:
        """Are the frozen layers' states remembered?"""
        return bool(self._states)

    def outputs(self, items: Sequence[Item], keys: Sequence[int] | None = None) -> Any:
        """transformers' output for the padded items.

        keys: the items' places in what was remembered; None: computed from the embeddings on.
        """
        inputs = self._inputs(items)
        if self.remembers and keys is not None:
            with self._from_remembered(keys):
                return self.model(**inputs)
        return self.model(**inputs)

    def states(self, items: Sequence[Item], keys: Sequence[int]) -> Tensor:
        """[items, N, H]: the last layer's states."""
        with self._from_remembered(keys) if self.remembers else nullcontext():
            output = self.model(**self._inputs(items), output_hidden_states=True)
        last: Tensor = output.hidden_states[-1]
        return last

    @torch.no_grad()
    def remember(
        self, items: Sequence[Item], batches: Sequence[Sequence[int]], told: Callable[[int], None]
    ) -> Tensor | None:
        """Compute the frozen layers' states of all items, where they fit and it is exact.

        told: is called with the number of items after each batch. Returns what the head reads of
        every item before anything is trained ([items, H]; of words [tokens, H], items in order);
        None without a head.
        """
        hidden = self.config.hidden_size
        fits = 4 * hidden * sum(len(item.ids) for item in items) <= MOST_REMEMBERED
        remembering = self.cut > 0 and fits and self._remembers_exactly(items[:8])
        if not remembering and self.head is None:
            return None
        read: dict[int, Tensor] = {}
        with self._reading_head() as captured:
            for batch in batches:
                chosen = [items[i] for i in batch]
                output = self.model(**self._inputs(chosen), output_hidden_states=remembering)
                if remembering:
                    states = output.hidden_states[self.cut].cpu()
                    self._states |= {
                        i: states[row, : len(items[i].ids)].clone() for row, i in enumerate(batch)
                    }
                for row, i in enumerate(batch if self.head is not None else ()):
                    rows = captured[-1][row].cpu()
                    read[i] = rows if rows.dim() == 1 else rows[: len(items[i].ids)].clone()
                told(len(batch))
        if self.head is None:
            return None
        every = [read[i] for i in range(len(items))]
        return torch.stack(every) if every[0].dim() == 1 else torch.cat(every)

    def save(self, folder: Path) -> None:
        """The PEFT folder, with the labels in a config.json: PEFT itself keeps none."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Without the vocabulary's path PEFT would ask the hub whether it was resized.
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
        self.config.to_json_file(folder / "config.json")
        for path in folder.glob("*.safetensors"):
            path.chmod(0o644)  # safetensors writes files that nobody else may read

    def state(self) -> dict[str, Tensor]:
        """A copy of what is trained, by name."""
        return {name: p.detach().cpu().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Set what is trained."""
        for name, p in self.trained.items():
            p.copy_(state[name])

    def _inputs(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Padded at the end. No mask where nothing is padded: torch's attention is faster then."""
        longest = max(len(item.ids) for item in items)
        ids = torch.full((len(items), longest), self.padding)
        mask = torch.zeros_like(ids)
        types = torch.zeros_like(ids)
        for row, item in enumerate(items):
            ids[row, : len(item.ids)] = torch.tensor(item.ids)
            mask[row, : len(item.ids)] = 1
            if item.types is not None:
                types[row, : len(item.ids)] = torch.tensor(item.types)
        inputs = {"input_ids": ids.to(self.device)}
        if not bool(mask.all()):
            inputs["attention_mask"] = mask.to(self.device)
        if any(item.types is not None for item in items):
            inputs["token_type_ids"] = types.to(self.device)
        return inputs

    @contextmanager
    def _from_remembered(self, keys: Sequence[int]) -> Iterator[None]:
        """The layers below the cut are left out, and the states above them put in."""
        assert self._place is not None
        parent, name = self._place
        rows = [self._states[key] for key in keys]
        place = Remembered()
        place.states = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)
        embeddings, layers = self.body.embeddings, parent.get_submodule(name)
        self.body.embeddings = place
        setattr(parent, name, nn.ModuleList(list(layers.children())[self.cut :]))
        try:
            yield
        finally:
            self.body.embeddings = embeddings
            setattr(parent, name, layers)

    def _remembers_exactly(self, items: Sequence[Item]) -> bool:
        """Do the layers above the cut give the whole model's output? Tried, not assumed."""
        if not hasattr(self.body, "embeddings"):
            return False
        whole = self.model(**self._inputs(items), output_hidden_states=True)
        states = whole.hidden_states[self.cut]
        self._states = {i: states[i, : len(item.ids)] for i, item in enumerate(items)}
        try:
            short = self.outputs(items, range(len(items)))
            difference = (
                max(
                    float((short[0][i, : len(item.ids)] - whole[0][i, : len(item.ids)]).abs().max())
                    for i, item in enumerate(items)
                )
                if short[0].dim() == 3
                else float((short[0] - whole[0]).abs().max())
            )
        except Exception:
            # Whatever another architecture makes of it: then nothing is remembered.
            return False
        finally:
            self._states = {}
        return difference <= AGREES * max(1.0, float(whole[0].abs().max()))

    @contextmanager
    def _reading_head(self) -> Iterator[list[Tensor]]:
        """What the head's last Linear is given; the last call's alone."""
        captured: list[Tensor] = []

        def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            captured[:] = [given[0].detach()]

        if self.head is None:
            yield captured
            return
        handle = self.head.register_forward_pre_hook(keep)
        try:
            yield captured
        finally:
            handle.remove()
