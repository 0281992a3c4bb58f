"""An outcome as a page, as the terminal's lines, and as the adapter's card."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader

from bert_lora.train.outcome import Outcome

CELL = 18  # pixels
SHOWN_NAME = 28  # characters
TERMINAL_LABELS = 10
TERMINAL_ERRORS = 5
TAGS = {  # the hub's, of what is no classification
    "words": "token-classification",
    "embeddings": "feature-extraction",
    "similarity": "sentence-similarity",
    "rerank": "text-ranking",
}


def write_page(outcome: Outcome, path: Path) -> None:
    """One HTML file that needs nothing else."""
    environment = Environment(loader=PackageLoader("bert_lora.train", "."), autoescape=True)
    template = environment.get_template("report.html.j2")
    amounts = outcome.scores[0].name == "R2"
    words = outcome.scores[0].name == "span F1"
    page = template.render(
        o=outcome,
        cell=_cell(len(outcome.confusion.labels)) if outcome.confusion else 0,
        shown_name=SHOWN_NAME,
        measure="off by" if amounts else "share wrong" if words else "how sure",
    )
    path.write_text(page, encoding="utf-8")


def _cell(labels: int) -> int:
    """Pixels of a cell: the picture is at most 40 full cells wide."""
    return CELL if labels <= 40 else max(4, 40 * CELL // labels)


def terminal(outcome: Outcome) -> str:
    """The same in lines: scores, the weakest labels, the worst errors, what changed."""
    lines = ["", f"{outcome.name}"]
    lines += [f"  held back: {score}" for score in outcome.scores]
    lines += [f"  test file: {score}" for score in outcome.test_scores]
    if outcome.neighbours:
        own, base = outcome.neighbours
        lines.append(f"  10 nearest neighbours: {own:.3f} right, by the base's vectors {base:.3f}")
    weakest = sorted(outcome.labels, key=lambda row: row.f1)[:TERMINAL_LABELS]
    if weakest:
        width = max(len(row.label[:SHOWN_NAME]) for row in weakest)
        lines += ["", "the weakest labels" if len(outcome.labels) > TERMINAL_LABELS else "labels"]
        lines += [
            f"  {row.label[:SHOWN_NAME]:{width}}  precision {row.precision:.3f}  "
            f"recall {row.recall:.3f}  F1 {row.f1:.3f}  of {row.count}"
            for row in weakest
        ]
    if outcome.mistakes:
        lines += ["", "the worst errors"]
        lines += [
            f"  row {m.row}: {m.text[:70]!r} is {m.gold[:SHOWN_NAME]}, said {m.said[:SHOWN_NAME]}"
            for m in outcome.mistakes[:TERMINAL_ERRORS]
        ]
    return "\n".join([*lines, "", outcome.layers, outcome.certificate])


def write_card(outcome: Outcome, task: str, base_id: str, path: Path) -> None:
    """README.md beside the adapter, as model hubs read it."""
    tag = TAGS.get(task, "text-classification")
    lines = ["---", "library_name: peft", f"base_model: {base_id}", f"tags: [lora, {tag}]", "---"]
    lines += [f"# {outcome.name}", ""]
    lines += [f"**{name}** {value}\n" for name, value in outcome.facts.items()]
    lines += [f"**held back** {score}\n" for score in outcome.scores]
    lines += [f"**test file** {score}\n" for score in outcome.test_scores]
    if outcome.neighbours:
        own, base = outcome.neighbours
        lines.append(
            f"**10 nearest neighbours** {own:.4f} right, by the base's vectors {base:.4f}\n"
        )
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
