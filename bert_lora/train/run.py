"""A data file -> an adapter's folder with its report, from the first row to the certificate."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from app.adapters.files import GOLDEN
from app.model.base_files import BaseFiles, find_base
from bert_lora.train import batches, outcome, report
from bert_lora.train.adapted import Sizes
from bert_lora.train.checkpoint import Checkpoint
from bert_lora.train.columns import Roles, Task, find_roles
from bert_lora.train.examples import (
    FEWEST,
    Example,
    contradictions,
    count_labels,
    overlap,
    read_examples,
    split,
)
from bert_lora.train.findings import BadData
from bert_lora.train.loop import Part, Schedule, Watcher, measure, train
from bert_lora.train.neighbours import neighbours
from bert_lora.train.objectives.choose import objective
from bert_lora.train.objectives.objective import Objective
from bert_lora.train.student import Student
from bert_lora.train.table import read_table

LONGEST = 128  # tokens; what is longer is cut, as it is when served
REMEMBERED_AT_ONCE = 64
RARE = 2  # rows of a label


@dataclass(frozen=True)
class Data:
    """The files and what is said of them. dev: held back to measure; None: a share of the data.
    test: measured once, at the end.
    """

    path: Path
    dev: Path | None = None
    test: Path | None = None
    task: Task | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    encoding: str | None = None
    header: bool | None = None
    share: float = 0.1


@dataclass(frozen=True)
class Plan:
    """What is to be trained, and where it is written."""

    name: str
    out: Path
    data: Data
    model: str | None = None
    sizes: Sizes = field(default_factory=Sizes)
    schedule: Schedule = field(default_factory=Schedule)
    longest: int = LONGEST


@dataclass(frozen=True)
class Read:
    """The examples of each part, checked."""

    roles: Roles
    train: list[Example]
    dev: list[Example]
    test: list[Example]
    notes: list[str]


def read_data(data: Data, seed: int) -> Read:
    """Read and check everything, before any training. Raises BadData, OSError."""
    table = read_table(data.path, data.encoding, data.header)
    roles = find_roles(table, data.task, data.text, data.pair, data.label)
    examples = read_examples(table, roles, str(data.path))
    notes = [*table.assumed, *roles.assumed]
    if roles.task in ("classify", "multi-label", "words") and _numbered(examples):
        notes.append(
            "the labels are numbers, and are served so: PUT /adapters/NAME/labels names them"
        )
    against = contradictions(examples)
    if against:
        notes.append(
            f"{len(against)} texts stand in several rows with different labels, "
            f"as rows {against[0][0]} and {against[0][1]}"
        )
    dev, test = _more(data.dev, data, roles), _more(data.test, data, roles)
    for path, others in ((data.dev, dev), (data.test, test)):
        known = set(overlap(others, examples))
        if known:
            notes.append(
                f"{len(known)} rows stand in {path} too and are left out of the training, as rows "
                f"{', '.join(map(str, sorted(known)[:5]))}: the scores would be too good"
            )
            examples = [e for e in examples if e.row not in known]
    if len(examples) < FEWEST:
        raise BadData(f"{len(examples)} rows are left to train on; {FEWEST} are the least")
    rare = [label for label, rows in count_labels(examples).items() if rows <= RARE]
    if rare and roles.task in ("classify", "multi-label", "embeddings"):
        notes.append(
            f"{len(rare)} labels have {RARE} rows or fewer, and can hardly be learned: "
            f"{', '.join(rare[:5])[:200]}"
        )
    held, dev = split(examples, data.share, seed) if data.dev is None else (examples, dev)
    unknown = set(count_labels(test)) - set(count_labels([*held, *dev]))
    if unknown and roles.task in ("classify", "embeddings"):
        raise BadData(f"{data.test}: the label {sorted(unknown)[0]!r} stands in no other file")
    return Read(roles, held, dev, test, notes)


def _numbered(examples: list[Example]) -> bool:
    return all(label.lstrip("-").isdigit() for label in count_labels(examples))


def _more(path: Path | None, data: Data, roles: Roles) -> list[Example]:
    if path is None:
        return []
    table = read_table(path, data.encoding, data.header)
    lacking = [c for c in (*roles.texts, *roles.labels) if c not in table.columns]
    if lacking:
        raise BadData(f"{path} has no column {lacking[0]!r}")
    return read_examples(table, roles, str(path))


def run(plan: Plan, watcher: Watcher) -> outcome.Outcome:
    """Train as planned; the adapter lies in plan.out when it returns.

    A run that was killed goes on where it stood when the same is asked again.
    Raises BadData, BaseRefused, EmbeddedBaseMissing, FloatingPointError, OSError.
    """
    started = time.monotonic()
    read = read_data(plan.data, plan.schedule.seed)
    for note in read.notes:
        watcher.says(note)
    _refuse_place(plan.out)
    torch.manual_seed(plan.schedule.seed)
    base = find_base(plan.model, None)
    goal = objective(read.roles, [*read.train, *read.dev], base.sentence.pooling or "mean")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = Student(base, goal.kind, goal.labels, plan.sizes, device)
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    parts = _parts(read, goal, tokenizer, plan.longest)
    _begin(student, goal, parts, watcher)
    checkpoint = Checkpoint(_checkpoint(plan.out), _fingerprint(plan, read))
    progress = train(student, goal, parts[:2], plan.schedule, checkpoint, watcher)
    scores, said = measure(student, goal, parts[1])
    tested = measure(student, goal, parts[2])[0] if read.test else []
    near = neighbours(student, parts[0], parts[1]) if read.roles.task == "classify" else None
    if student.head is not None:
        goal.finish(student.head)
    result = _outcome(plan, read, base, goal, said)
    result.scores, result.test_scores, result.neighbours = scores, tested, near
    result.history = progress.history
    result.facts["Time"] = f"{time.monotonic() - started:.0f} s, {_processor(device)}"
    (plan.out / GOLDEN).unlink(missing_ok=True)  # of what lay there before
    student.save(plan.out)
    checkpoint.remove()
    return result


def _refuse_place(out: Path) -> None:
    """Raises BadData where nothing could be written, before minutes are spent."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise BadData(f"--out {out}: {there} is no folder that can be written to")


def _checkpoint(out: Path) -> Path:
    """Beside the folder: a server may be watching for adapters there."""
    return out.with_name(f".{out.name}.training")


def _parts(
    read: Read, goal: Objective, tokenizer: PreTrainedTokenizerBase, longest: int
) -> tuple[Part, Part, Part]:
    """What is trained on, measured by, and tested at the end. Items are numbered through."""
    parts, offset = [], 0
    for examples in (read.train, read.dev, read.test):
        items = [goal.items(tokenizer, e, longest) for e in examples]
        parts.append(Part(examples, items, offset))
        offset += sum(map(len, items))
    return parts[0], parts[1], parts[2]


def _begin(student: Student, goal: Objective, parts: Sequence[Part], watcher: Watcher) -> None:
    """Compute the frozen layers once, and start the head from what they already say."""
    items = [item for part in parts for several in part.items for item in several]
    watcher.begins("frozen layers", len(items))
    order = batches.by_length([len(item.ids) for item in items], REMEMBERED_AT_ONCE)
    read = student.remember(items, order, watcher.advances)
    if read is None or student.head is None:
        return
    trained = [item for several in parts[0].items for item in several]
    rows = len(trained) if len(read) == len(items) else sum(len(i.ids) for i in trained)
    first = goal.first_head(read[:rows], parts[0].examples, trained)
    if first is not None:
        with torch.no_grad():
            student.head.weight.copy_(first[0])
            student.head.bias.copy_(first[1])


def _fingerprint(plan: Plan, read: Read) -> str:
    asked = {
        "sizes": asdict(plan.sizes),
        "schedule": asdict(plan.schedule),
        "longest": plan.longest,
        "model": plan.model,
        "roles": asdict(read.roles),
        "torch": torch.__version__,
    }
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for path in (plan.data.path, plan.data.dev, plan.data.test):
        if path is not None:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _outcome(
    plan: Plan, read: Read, base: BaseFiles, goal: Objective, said: Sequence[Any]
) -> outcome.Outcome:
    task = read.roles.task
    with plan.data.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    lengths = [len(" ".join(e.texts)) for e in read.train]
    facts = {
        "Base": base.id,
        "Task": f"{task}; {len(goal.labels)} labels" if len(goal.labels) > 1 else task,
        "Data": f"{plan.data.path.name} (sha256 {digest}), {len(read.train):,} rows trained on, "
        f"{len(read.dev):,} held back, {int(np.median(lengths))} characters in the middle",
        "LoRA": f"rank {plan.sizes.rank}, alpha {plan.sizes.alpha}, on every Linear of the last "
        f"{plan.sizes.layers or 'half of the'} layers",
        "Command": shlex.join(["bert-lora", *sys.argv[1:]]),
    }
    headed = bool(goal.labels)
    tabled = headed and task not in ("regression", "rerank")
    return outcome.Outcome(
        plan.name, facts, [], [], [],
        outcome.label_rows(goal, said, read.dev, task == "words") if tabled else [],
        outcome.confusion(goal, said, read.dev) if task == "classify" else None,
        outcome.mistakes(goal, said, read.dev) if headed else [],
        None,
        notes=read.notes,
    )  # fmt: skip


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of a CPU ({torch.backends.cpu.get_cpu_capability()})"


def finish(plan: Plan, result: outcome.Outcome, task: str) -> None:
    """What the server would say of the folder, the certificate, and the report beside it.

    Raises AdapterRejected where the server would not serve it.
    """
    from app.adapters.recipe import Options
    from app.tools.certify import CannotCertify, certify
    from app.tools.check import check

    result.layers, served = check(plan.out, plan.model, Options(), as_json=False)
    if not served:
        raise BadData(result.layers)
    try:
        result.certificate = certify(plan.out, plan.model, None)
    except CannotCertify as error:
        result.certificate = f"no certificate: {error}"
    report.write_page(result, plan.out / "report.html")
    base_id = result.facts["Base"]
    report.write_card(result, task, base_id, plan.out / "README.md")
