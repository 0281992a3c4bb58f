"""A head's labels, and what becomes of its logits.

The query's come first, then those of the adapter's files, then the base's config.json. That is the
order of transformers, whose pipelines read the model's config. Knows no mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from app.adapters.base import Base, Classifier
from app.adapters.recipe import PROBLEM_TYPES, Recipe
from app.adapters.refusals import AdapterRejected, Misfit
from app.adapters.values import Head, ProblemType, Scores, Task

ARCHITECTURES: dict[str, Task] = {
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tokens",
}
TEXTS_ONLY = ("classifier.out_proj.weight", "pre_classifier.weight")


@dataclass(frozen=True)
class Labelling:
    """A head's labels and activation. assumed: what the upload leaves open, in words."""

    labels: tuple[str, ...] = ()
    scores: Scores = "softmax"
    assumed: tuple[str, ...] = ()


def read_labels(id2label: Any) -> tuple[str, ...]:
    """An id2label's labels in the order of their ids. Raises Misfit."""
    try:
        ordered = {int(i): str(label) for i, label in id2label.items()}
    except (AttributeError, ValueError, TypeError):
        raise Misfit("id2label is not a map from id to label") from None
    if sorted(ordered) != list(range(len(ordered))):
        raise Misfit("id2label does not number its labels 0, 1, 2, …")
    return tuple(ordered[i] for i in range(len(ordered)))


def task_of_class(name: object) -> Task | None:
    """What a model class of transformers is for; None for one without such a head."""
    return next((task for end, task in ARCHITECTURES.items() if str(name).endswith(end)), None)


def base_classifier(
    architectures: Any, id2label: Any, problem_type: Any, head: Mapping[str, Any]
) -> Classifier | None:
    """What a base's config.json says of its own head; None for a base that is no classifier.

    head: the tensors that its checkpoint holds of one.
    """
    task = (
        task_of_class(architectures[0])
        if isinstance(architectures, list) and architectures
        else None
    )
    if task is None and any(name in head for name in TEXTS_ONLY):
        task = "classify"
    if task is None and not any(name.startswith("classifier.") for name in head):
        return None
    try:
        labels = read_labels(id2label)
    except Misfit:
        labels = ()
    usable = labels != _numbered(len(labels)) and len(set(labels)) == len(labels)
    named = next((name for name in PROBLEM_TYPES if name == problem_type), None)
    return Classifier(task, labels if usable and labels else None, named)


def label(head: Head | None, task: Task, recipe: Recipe, base: Base, *, own: bool) -> Labelling:
    """The head's labels, LABEL_0… where nothing names them, and its scores.

    own: whether the base's head answers, and not one that came with the adapter.
    Raises AdapterRejected for labels that do not fit the head.
    """
    if head is None:
        return Labelling()
    assumed = []
    theirs = base.classifier.labels if base.classifier else None
    labels = recipe.labels
    if labels is None and theirs is not None and len(theirs) == head.labels:
        labels = theirs
        if not own:
            assumed.append(f"its labels are the base's own, {_some(labels)}: {_ways('others')}")
    elif labels is None:
        labels = _numbered(head.labels)
        assumed.append(f"nothing names its labels, which are {_some(labels)} now: {_ways('them')}")
    _check(labels, head)
    scores, why = _scores(task, head.labels, recipe, base, own=own)
    return Labelling(labels, scores, (*assumed, *why))


def _scores(
    task: Task, count: int, recipe: Recipe, base: Base, *, own: bool
) -> tuple[Scores, list[str]]:
    match task:
        case "classify":
            theirs = base.classifier.problem_type if base.classifier else None
            problem_type = recipe.problem_type or theirs
            assumed = []
            if recipe.problem_type is None and theirs is not None and not own:
                taken = f"the base's problem_type, {theirs}, is taken for the adapter's"
                assumed = [f"{taken}: ?problem_type= says another"]
            elif problem_type is None and count == 1:
                assumed = [
                    "its one label's score is a sigmoid, as in transformers' pipeline, since "
                    "nothing gives a problem_type: ?problem_type=regression leaves the number as "
                    "it is"
                ]
            return scores_of(problem_type, count), assumed
        case "tokens" | "embed":
            return "softmax", []
        case _:
            assert_never(task)


def scores_of(problem_type: ProblemType | None, labels: int) -> Scores:
    """What becomes of logits. Source: transformers' TextClassificationPipeline.postprocess, whose
    config.function_to_apply no count of labels lets through.
    """
    match problem_type:
        case "regression":
            return "none"
        case "multi_label_classification":
            return "sigmoid"
        case "single_label_classification" | None:
            return "sigmoid" if labels == 1 else "softmax"
        case _:
            assert_never(problem_type)


def _check(labels: tuple[str, ...], head: Head) -> None:
    """Raises AdapterRejected."""
    if len(labels) != head.labels:
        raise AdapterRejected(f"{len(labels)} labels are given for a head of {head.labels}")
    if any("\ud800" <= c <= "\udfff" for label in labels for c in label):
        raise AdapterRejected("a label holds half of a surrogate pair, which is no character")
    if len(set(labels)) != len(labels):
        raise AdapterRejected("a label is given twice")


def _numbered(count: int) -> tuple[str, ...]:
    """transformers' own names for labels without one."""
    return tuple(f"LABEL_{i}" for i in range(count))


def _some(labels: tuple[str, ...]) -> str:
    more = len(labels) - 3
    return ", ".join(label[:40] for label in labels[:3]) + (f" and {more} more" if more > 0 else "")


def _ways(what: str) -> str:
    return (
        f"give {what} with ?labels=a,b, with id2label in a config.json beside the weights, or "
        "later with PUT /adapters/{name}/labels"
    )
