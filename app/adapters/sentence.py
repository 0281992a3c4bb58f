"""How a model or adapter makes one vector of a text: sentence-transformers' files, understood.

Knows JSON already read; knows no folders and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

Pooling = Literal["mean", "cls", "last", "max", "pooler"]

POOLING_MODES: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
POOLING_NAMES: dict[str, Pooling] = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "lasttoken": "last",
}
SERVED_MODULES = {"Transformer", "Pooling", "Normalize"}


class SentenceRefused(Exception):
    """A step between the encoder and the vector that is not served."""


@dataclass(frozen=True)
class Sentence:
    """None: not said. max_length in tokens, special ones included. dimensions: the matryoshka lengths
    that vectors may be cut to. truncate_dim: the length they are cut to where nothing is asked.
    """

    pooling: Pooling | None = None
    normalize: bool | None = None
    max_length: int | None = None
    prompts: Mapping[str, str] | None = None
    default_prompt: str | None = None
    dimensions: tuple[int, ...] | None = None
    truncate_dim: int | None = None

    def over(self, other: Sentence) -> Sentence:
        """What this one says, and where it says nothing, what the other does.

        A default prompt goes with its own prompts.
        """
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.prompts is not None:
            other = replace(other, default_prompt=None)
        return Sentence(**{k: getattr(other, k) if v is None else v for k, v in mine.items()})


def pooling_folder(modules: Any) -> str | None:
    """Where modules.json says that the pooling's config is. Raises SentenceRefused."""
    kinds = _kinds(modules)
    return next((m.get("path") for m, kind in kinds if kind == "Pooling"), None)


def read_sentence(modules: Any, pooling: Any, transformer: Any, prompts: Any) -> Sentence:
    """From modules.json, 1_Pooling/config.json, sentence_bert_config.json and
    config_sentence_transformers.json, each parsed, or None where it is missing.

    Raises SentenceRefused.
    """
    kinds = [kind for _, kind in _kinds(modules)]
    transformer, prompts = _object(transformer), _object(prompts)
    if transformer.get("do_lower_case") is True:
        raise SentenceRefused(
            "its sentence_bert_config.json lowers all letters, which is not served"
        )
    named = prompts.get("prompts") or {}
    if not isinstance(named, dict) or not all(isinstance(v, str) for v in named.values()):
        raise SentenceRefused("its prompts are not a map from names to texts")
    length, cut = transformer.get("max_seq_length"), prompts.get("truncate_dim")
    return Sentence(
        _pooling(_object(pooling)) if pooling is not None else None,
        "Normalize" in kinds if kinds else None,
        length if type(length) is int and length > 0 else None,
        named or None,
        prompts.get("default_prompt_name"),
        None,
        cut if type(cut) is int and cut > 0 else None,
    )


def _kinds(modules: Any) -> list[tuple[dict[str, Any], str]]:
    """Each module with its class's name."""
    modules = modules or []
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise SentenceRefused("its modules.json is not a list of modules")
    kinds = [(m, str(m.get("type", "")).rsplit(".", 1)[-1]) for m in modules]
    unknown = {kind for _, kind in kinds} - SERVED_MODULES
    if unknown:
        raise SentenceRefused(
            f"its modules.json has {', '.join(sorted(unknown))}, which is not served"
        )
    return kinds


def _pooling(config: dict[str, Any]) -> Pooling:
    if config.get("include_prompt") is False:
        raise SentenceRefused("its pooling leaves the prompt's tokens out, which is not served")
    named = config.get("pooling_mode")
    if isinstance(named, str):
        modes = [POOLING_NAMES.get(named)]
    else:
        on = [k for k, v in config.items() if k.startswith("pooling_mode_") and v is True]
        modes = [POOLING_MODES.get(k) for k in on] or ["mean"]
    if len(modes) != 1 or modes[0] is None:
        raise SentenceRefused(f"its pooling ({config!s:.200}) is not one of cls, mean, max, last")
    return modes[0]


def _object(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SentenceRefused("one of its sentence-transformers files is not a JSON object")
    return value
