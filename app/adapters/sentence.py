"""How a model or adapter makes one vector of a text: sentence-transformers' files, understood.

Knows JSON already read; knows no folders and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

T = TypeVar("T")
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
MAX_PROMPT_LENGTH = 10_000  # characters, as in a request
SHORTEST_LENGTH = 8  # the special tokens of a pair, and something to say


class SentenceRefused(Exception):
    """A step between the encoder and the vector that is not served."""


@dataclass(frozen=True)
class Sentence:
    """How a text becomes a vector; None: its files do not say.

    max_length: in tokens, special ones included. dimensions: the matryoshka lengths that vectors
    may be cut to. truncate_dim: the length that they are cut to where a request names none.
    """

    pooling: Pooling | None = None
    normalize: bool | None = None
    max_length: int | None = None
    prompts: Mapping[str, str] | None = None
    default_prompt: str | None = None
    dimensions: tuple[int, ...] | None = None
    truncate_dim: int | None = None

    def over(self, other: Sentence) -> Sentence:
        """Each member of this one, or the other's where it is None.

        A default prompt goes with its own prompts.
        """
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.prompts is not None:
            other = replace(other, default_prompt=None)
        return Sentence(**{k: getattr(other, k) if v is None else v for k, v in mine.items()})


def read_sentence(modules: Any, pooling: Any, transformer: Any, prompts: Any) -> Sentence:
    """From modules.json, 1_Pooling/config.json, sentence_bert_config.json and
    config_sentence_transformers.json, each parsed, or None where it is missing.

    Raises SentenceRefused for what is not served, and for values of a wrong type.
    """
    kinds = _kinds(modules)
    if "Pooling" in kinds and pooling is None:
        raise SentenceRefused(
            "its modules.json has a Pooling, and 1_Pooling/config.json is missing"
        )
    transformer, prompts = _object(transformer), _object(prompts)
    if _value(transformer, "do_lower_case", bool, False):
        raise SentenceRefused(
            "its sentence_bert_config.json lowers all letters, which is not served"
        )
    texts = _value(prompts, "prompts", dict, {})
    if not all(isinstance(text, str) for text in texts.values()):
        raise SentenceRefused("its prompts are not a map from names to texts")
    if any(len(text) > MAX_PROMPT_LENGTH for text in texts.values()):
        raise SentenceRefused(f"a prompt is over {MAX_PROMPT_LENGTH:,} characters")
    return Sentence(
        _pooling(_object(pooling)) if pooling is not None else None,
        "Normalize" in kinds if kinds else None,
        _positive(transformer, "max_seq_length", SHORTEST_LENGTH),
        texts or None,
        _value(prompts, "default_prompt_name", str, None),
        None,
        _positive(prompts, "truncate_dim", 1),
    )


def _kinds(modules: Any) -> list[str]:
    """Each module's class, by name."""
    modules = [] if modules is None else modules
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise SentenceRefused("its modules.json is not a list of modules")
    kinds = [str(m.get("type", "")).rsplit(".", 1)[-1] for m in modules]
    unknown = set(kinds) - SERVED_MODULES
    if unknown or len(set(kinds)) < len(kinds):
        what = ", ".join(sorted(unknown)) or "a module twice"
        raise SentenceRefused(f"its modules.json has {what}, which is not served")
    paths = {kind: m.get("path") for m, kind in zip(modules, kinds, strict=True)}
    if paths.get("Pooling", "1_Pooling") != "1_Pooling":
        raise SentenceRefused("its pooling's config is not at 1_Pooling, the place that is served")
    return kinds


def _pooling(config: dict[str, Any]) -> Pooling:
    if not _value(config, "include_prompt", bool, True):
        raise SentenceRefused("its pooling leaves the prompt's tokens out, which is not served")
    mode = _value(config, "pooling_mode", str, None)
    flags = {k: _value(config, k, bool, False) for k in config if k.startswith("pooling_mode_")}
    if mode is not None:
        modes = [POOLING_NAMES.get(mode)]
    elif flags:
        modes = [POOLING_MODES.get(k) for k, on in flags.items() if on]
    else:
        modes = ["mean"]  # sentence-transformers' own default
    if len(modes) != 1 or modes[0] is None:
        raise SentenceRefused(f"its pooling ({config!s:.200}) is not one of cls, mean, max, last")
    return modes[0]


def _object(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SentenceRefused("one of its sentence-transformers files is not a JSON object")
    return value


def _value(fields: dict[str, Any], name: str, kind: type[T], default: Any) -> Any:
    """A field of this type; null is its default. Raises SentenceRefused."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise SentenceRefused(f"its {name} is {value!r:.60}, which is no {kind.__name__}")
    return value


def _positive(fields: dict[str, Any], name: str, least: int) -> int | None:
    value = _value(fields, name, int, None)
    if value is not None and (isinstance(value, bool) or value < least):
        raise SentenceRefused(f"its {name} is {value!r:.60}; {least} or more is served")
    return value if value is None else int(value)
