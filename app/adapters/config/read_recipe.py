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
from app.adapters.config.peft import (
    bias,
    biases_saved,
    blocks,
    init,
    targeting,
    tokens,
    trained_type,
)
from app.adapters.config.peft_fields import MATHEMATICS, METADATA, check_fields
from app.adapters.methods.method import Method
from app.adapters.methods.table import method_of
from app.adapters.receiving.upload import HalfACharacter, whole_text
from app.adapters.recipe import PROBLEM_TYPES, Options, Recipe
from app.adapters.refusals import AdapterRejected, Problems
from app.adapters.sentence import SHORTEST_LENGTH, Pooling, Sentence
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
    if is_adapterhub(config):  # which says the base's width
        model_config = {"hidden_size": config.get("hidden_size"), **model_config}
        config = in_pefts_words(config)
    method, configured = method_of(config), config.get("peft_type") is not None
    problems = Problems()
    check_fields(method, config, problems, configured=configured)
    beside = _from_metadata(metadata)
    merged = {k: v for k, v in beside.items() if not (configured and k in MATHEMATICS)}
    fields = Fields({**merged, **config}, problems)
    others = [options.alpha, *(beside.get(name) for name in ("alpha", "lora_alpha"))]
    recipe = replace(
        _formula(method, configured, fields),
        alpha=_alpha(fields, method, configured, others),
        given_scale=_given_scale(method, options, problems),
        layout=options.layout or fields.one_of("layout", LAYOUTS),
        task=_task(fields, options),
        task_of_class=_task_of_class(fields, model_config),
        labels=options.labels or _labels(fields, model_config),
        problem_type=_problem_type(fields, options, model_config),
        sentence=_sentence(fields, options, sentence or Sentence()),
        model_config=model_config,
        made_for=fields.text("base_model_name_or_path"),
        made_for_type=trained_type(fields),
        assumed=_assumed(method, config),
    )
    return replace(recipe, problems=tuple(problems))


def _formula(method: Method, configured: bool, fields: Fields) -> Recipe:
    """What the method's formula and the choice of its layers depend on."""
    return Recipe(
        kind=method.name,
        configured=configured,
        rank=fields.integer("r", method.least_rank if configured else 0) or None,
        rslora=bool(fields.get("use_rslora")),
        rank_pattern=fields.numbers_by_name("rank_pattern") if method.patterns else {},
        alpha_pattern=fields.numbers_by_name("alpha_pattern") if method.patterns else {},
        dora=bool(fields.get("use_dora")),
        lora_bias=bool(fields.get("lora_bias")),
        bias=bias(fields),
        biases_saved=biases_saved(fields),
        init=init(fields),
        blocks=blocks(fields),
        truncated=fields.get("kasa_config") is not None,
        tokens=tokens(fields),
        numbers={name: fields.like(name, default) for name, default in method.numbers.items()},
        targeting=targeting(fields),
    )


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


def _assumed(method: Method, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Warnings: a config that leaves out its method, and one that an older PEFT computed otherwise.

    No file tells which PEFT: it notes its version since 0.18. tests/zoo has what older ones
    answered.
    """
    if config.get("peft_type") is None:
        unnamed = "its adapter_config.json says no peft_type: it is read as LORA"
        return (unnamed,) if config else ()
    dated = config.get("peft_version") is not None
    return () if dated or method.before is None else (method.before,)


def _alpha(fields: Fields, method: Method, configured: bool, others: list[Any]) -> float | None:
    """The config's, by its method's own name for it; without a config the file's or the query's."""
    names = [method.alpha] if configured else [method.alpha, "alpha"]
    alpha = next((a for name in names if (a := fields.number(name)) is not None), None)
    if alpha is None and configured:
        alpha = DEFAULT_ALPHA
    for other in (Fields({"alpha": o}, fields.problems).number("alpha") for o in others):
        if alpha is None:
            alpha = other
        elif other not in (None, alpha):
            where = "the query or the file's metadata"
            fields.problems.add(f"alpha is {other:g} in {where}, and {alpha:g} elsewhere")
    return alpha


def _given_scale(method: Method, options: Options, problems: Problems) -> float | None:
    """The query's scale. Whether it agrees with a config's alpha, each layer's rank tells."""
    if options.scale is not None and options.alpha is not None:
        problems.add("the query gives both alpha and scale: leave one of them out")
    if options.scale is not None and not method.free_scale:
        problems.add(f"the query gives a scale, and {method.name} has none that is free")
    return options.scale


def _task(fields: Fields, options: Options) -> Task | None:
    """The query's or the config's task, or its task_type."""
    task_type = fields.get("task_type")
    if not isinstance(task_type, str | None) or task_type not in TASKS:
        fields.problems.add(f"task_type {task_type!r:.40} is not served")
        return None
    task = TASKS[task_type]
    if options.task is not None and task is not None and options.task != task:
        fields.problems.add(f"the query says task={options.task}, the config {task_type}")
    chosen: Task | None = options.task or fields.one_of("task", get_args(Task)) or task
    return chosen


def _task_of_class(fields: Fields, model_config: Mapping[str, Any]) -> Task | None:
    """What the class that PEFT or config.json name is for: its head may not have been saved."""
    mapping, names = fields.get("auto_mapping"), model_config.get("architectures")
    classes = [mapping.get("base_model_class")] if isinstance(mapping, dict) else []
    classes += names[:1] if isinstance(names, list) else []
    return next((task for name in classes if (task := task_of_class(name))), None)


def _problem_type(
    fields: Fields, options: Options, model_config: Mapping[str, Any]
) -> ProblemType | None:
    """The query's, the adapter's own config's or config.json's."""
    own = options.problem_type or fields.get("problem_type")
    name = own or model_config.get("problem_type")
    if name is None:
        return None
    for problem_type in PROBLEM_TYPES:
        if problem_type == name:
            return problem_type
    fields.problems.add(f"problem_type {name!r:.60} is none of {', '.join(PROBLEM_TYPES)}")
    return None


def _sentence(fields: Fields, options: Options, files: Sentence) -> Sentence:
    """How it embeds: by the query, then config or metadata, then sentence-transformers files."""
    normalize = fields.boolean("normalize")
    own = Sentence(
        options.pooling or fields.one_of("pooling", get_args(Pooling)),
        normalize if options.normalize is None else options.normalize,
        fields.integer("max_length", SHORTEST_LENGTH),
        fields.texts_by_name("prompts"),
        fields.text("default_prompt_name"),
        fields.positive_integers("dimensions"),
    )
    sentence = own.over(files)
    default = sentence.default_prompt
    if default is not None and default not in (sentence.prompts or {}):
        fields.problems.add(f"default_prompt_name {default!r:.60} is none of its prompts")
    return sentence


def _labels(fields: Fields, model_config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """labels, or id2label in order of id; the adapter's own config before config.json."""
    labels = fields.get("labels")
    if isinstance(labels, list):
        return tuple(str(label) for label in labels)
    by_id = fields.get("id2label") or model_config.get("id2label")
    with fields.problems.caught():
        return read_labels(by_id) if by_id else None
    return None
