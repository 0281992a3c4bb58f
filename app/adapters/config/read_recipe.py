"""What an upload says about itself: adapter_config.json, config.json, file metadata, the query.

Where a tensor goes is read from its name (layouts.py); how it is scaled, from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from app.adapters.config.adapterhub import in_pefts_words, is_adapterhub
from app.adapters.config.fields import Fields
from app.adapters.config.labels import read_labels, task_of_class
from app.adapters.config.patterns import Patterns
from app.adapters.config.peft import (
    bias,
    biases_saved,
    blocks,
    computed_otherwise,
    init,
    number,
    targeting,
    tokens,
    trained_type,
    unnamed_method,
)
from app.adapters.config.recipe import PROBLEM_TYPES, Options, Recipe
from app.adapters.config.sentence import SHORTEST_LENGTH, Pooling, Sentence
from app.adapters.methods.kinds import (
    KINDS,
    MATHEMATICS,
    METADATA,
    SCALED_BY_QUERY,
    Method,
    unserved_field,
    why_not,
)
from app.adapters.receiving.upload import HalfACharacter, whole_text
from app.adapters.refusals import AdapterRejected, Problem
from app.adapters.values import ProblemType, Task

TASKS: dict[str | None, Task | None] = {
    None: None,
    "SEQ_CLS": "classify",
    "TOKEN_CLS": "tokens",
    "FEATURE_EXTRACTION": "embed",
}
LAYOUTS = ("peft", "tutorial", "tutorial-swapped")
DEFAULT_ALPHA = 8.0  # PEFT's own, of every method that has one


def read_recipe(
    config: Mapping[str, Any],
    model_config: Mapping[str, Any],
    metadata: Mapping[str, str],
    options: Options,
    sentence: Sentence | None = None,
) -> Recipe:
    """Put together adapter_config.json, config.json, the file's metadata and the query.

    Every field that would change the mathematics and is not served, and sources that disagree, are
    among its problems. Raises AdapterRejected for a method that is not served at all.
    """
    plain = in_pefts_words(config) if is_adapterhub(config) else config
    if plain is not config:  # AdapterHub's, which says the base's width
        model_config = {"hidden_size": config.get("hidden_size"), **model_config}
    kind = kind_of(plain)
    configured = plain.get("peft_type") is not None
    said = _from_metadata(metadata)
    fields = {k: v for k, v in said.items() if not (configured and k in MATHEMATICS)}
    fields |= plain
    problems = [
        Problem(why)
        for name, value in plain.items()
        if (why := unserved_field(kind, name, value, configured=configured))
    ]
    read = Fields(fields, problems)
    recipe = Recipe(
        kind=kind,
        configured=configured,
        alpha=_alpha(read, kind, configured, [options.alpha, *_alphas(said)]),
        given_scale=_given_scale(kind, options, problems),
        rank=read.integer("r", 1 if kind == "LORA" and configured else 0) or None,
        rslora=bool(fields.get("use_rslora")),
        rank_pattern={} if kind == "ADALORA" else read.patterns("rank_pattern"),
        alpha_pattern={} if kind == "ADALORA" else read.patterns("alpha_pattern"),
        dora=bool(fields.get("use_dora")),
        lora_bias=bool(fields.get("lora_bias")),
        bias=bias(read),
        biases_saved=biases_saved(fields),
        init=init(fields, problems),
        blocks=blocks(fields, problems),
        truncated=fields.get("kasa_config") is not None,
        tokens=tokens(fields, problems),
        numbers={
            name: number(read, name, default) for name, default in KINDS[kind].numbers.items()
        },
        targeting=targeting(read),
        layout=options.layout or read.one_of("layout", LAYOUTS),
        task=_task(read, options),
        task_of_class=_task_of_class(fields, model_config),
        labels=options.labels or _labels(fields, model_config, problems),
        problem_type=_problem_type(options, fields, model_config, problems),
        sentence=_sentence(read, options, sentence or Sentence()),
        model_config=model_config,
        made_for=_text(fields.get("base_model_name_or_path")),
        made_for_type=trained_type(fields),
        assumed=(*unnamed_method(plain), *computed_otherwise(kind, fields)),
        patterns=Patterns(),
    )
    return replace(recipe, problems=tuple(problems))


def _from_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The file's own __metadata__: only fields that a config could hold; values as JSON or text."""
    fields: dict[str, Any] = {}
    for name, text in metadata.items():
        if name in METADATA:
            try:
                fields[name] = whole_text(json.loads(text))
            except HalfACharacter as error:
                raise AdapterRejected(f"the file's metadata {name} {error}") from None
            except (ValueError, RecursionError):
                fields[name] = text
    if isinstance(fields.get("labels"), str):
        fields["labels"] = fields["labels"].split(",")
    return fields


def kind_of(config: Mapping[str, Any]) -> Method:
    """Its peft_type, LORA where it says none. Raises AdapterRejected for one that is not served."""
    kind = config.get("peft_type") or "LORA"
    found = next((method for method in KINDS if method == kind), None)
    if found is None:
        reason = why_not(kind)
        raise AdapterRejected(reason, [Problem(reason)])
    return found


def _alphas(said: Mapping[str, Any]) -> list[Any]:
    return [said[name] for name in ("alpha", "lora_alpha") if name in said]


def _alpha(read: Fields, kind: str, configured: bool, others: list[Any]) -> float | None:
    """The config's, by its method's own name for it; without a config the file's or the query's."""
    names = ["alpha"] if kind in ("LOHA", "LOKR") else ["lora_alpha"]
    names += [] if configured else ["alpha"]
    found = next((a for name in names if (a := read.number(name)) is not None), None)
    if found is None and configured:
        found = DEFAULT_ALPHA
    for other in (Fields({"alpha": o}, read.problems).number("alpha") for o in others):
        if found is None:
            found = other
        elif other not in (None, found):
            where = "the query or the file's metadata"
            read.problems.append(Problem(f"alpha is {other:g} in {where}, and {found:g} elsewhere"))
    return found


def _given_scale(kind: Method, options: Options, problems: list[Problem]) -> float | None:
    """The query's scale. Whether it agrees with a config's alpha, each layer's rank tells."""
    if options.scale is not None and options.alpha is not None:
        problems.append(Problem("the query gives both alpha and scale: leave one of them out"))
    if options.scale is not None and kind not in SCALED_BY_QUERY:
        problems.append(Problem(f"the query gives a scale, and {kind} has none that is free"))
    return options.scale


def _task(read: Fields, options: Options) -> Task | None:
    """The query's or the config's task, or its task_type."""
    said = read.fields.get("task_type")
    if not isinstance(said, str | None) or said not in TASKS:
        read.problems.append(Problem(f"task_type {said!r:.40} is not served"))
        return None
    task = TASKS[said]
    if options.task is not None and task is not None and options.task != task:
        read.problems.append(Problem(f"the query says task={options.task}, the config {said}"))
    found: Task | None = options.task or read.one_of("task", get_args(Task)) or task
    return found


def _task_of_class(fields: Mapping[str, Any], model_config: Mapping[str, Any]) -> Task | None:
    """What the class that PEFT or config.json name is for: it may have had a head that was not saved."""
    mapping, names = fields.get("auto_mapping"), model_config.get("architectures")
    classes = [mapping.get("base_model_class")] if isinstance(mapping, dict) else []
    classes += names[:1] if isinstance(names, list) else []
    return next((task for name in classes if (task := task_of_class(name))), None)


def _problem_type(
    options: Options,
    fields: Mapping[str, Any],
    model_config: Mapping[str, Any],
    problems: list[Problem],
) -> ProblemType | None:
    said = options.problem_type or fields.get("problem_type") or model_config.get("problem_type")
    found = next((kind for kind in PROBLEM_TYPES if kind == said), None)
    if said is None or found is not None:
        return found
    problems.append(Problem(f"problem_type {said!r:.60} is none of {', '.join(PROBLEM_TYPES)}"))
    return None


def _sentence(read: Fields, options: Options, files: Sentence) -> Sentence:
    """How it embeds: the query, then the config or metadata, then its sentence-transformers files."""
    prompts = read.texts("prompts")
    dimensions = read.integers("dimensions")
    normalize = read.boolean("normalize")
    own = Sentence(
        options.pooling or read.one_of("pooling", get_args(Pooling)),
        normalize if options.normalize is None else options.normalize,
        read.integer("max_length", SHORTEST_LENGTH),
        prompts,
        _text(read.fields.get("default_prompt_name")),
        dimensions,
    )
    found = own.over(files)
    if found.default_prompt is not None and found.default_prompt not in (found.prompts or {}):
        read.problems.append(
            Problem(f"default_prompt_name {found.default_prompt!r:.60} is none of its prompts")
        )
    return found


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _labels(
    fields: Mapping[str, Any], model_config: Mapping[str, Any], problems: list[Problem]
) -> tuple[str, ...] | None:
    """labels, or id2label in order of id; the adapter's own config before config.json."""
    if isinstance(fields.get("labels"), list):
        return tuple(str(label) for label in fields["labels"])
    for source in (fields, model_config):
        by_id = source.get("id2label")
        if not by_id:
            continue
        try:
            return read_labels(by_id)
        except ValueError as error:
            problems.append(Problem(str(error)))
            return None
    return None
