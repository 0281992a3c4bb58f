"""`bert-lora train` beside a plain loop: PEFT on transformers' Trainer, the same rows, one run.


For files with one label a text. The plain loop is what PEFT's documentation shows: LoRA of rank 8
on every Linear, batches as they come, padded to their longest, the base's own dropout, the same
learning rate and batch. Printed: the seconds after which each epoch had which accuracy on the rows
held back, and how long each took to the lower of the two best.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from torch.utils.data import Dataset

from app.model.base_files import find_base
from bert_lora.train.examples import Example
from bert_lora.train.loop import Schedule
from bert_lora.train.run import LONGEST, Data, Plan, read_data, run

Marks = list[tuple[float, float]]  # (seconds since the start, accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--plain-epochs", type=int, default=6)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        ours = measured_ours(args.data, Path(folder))
        plain = measured_plain(args.data, args.plain_epochs, folder)
    both = min(max(s for _, s in marks) for marks in (ours, plain))
    first = {
        name: next(seconds for seconds, score in marks if score >= both)
        for name, marks in (("ours", ours), ("plain", plain))
    }
    result = {"ours": ours, "plain": plain, "accuracy": both, "seconds to it": first}
    result["times as fast"] = round(first["plain"] / first["ours"], 2)
    print(json.dumps(result))


class Clock:
    """Hears of each epoch, and notes when."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.marks: Marks = []

    def begins(self, what: str, total: int) -> None:
        pass

    def advances(self, steps: int) -> None:
        pass

    def says(self, words: str) -> None:
        if words.startswith("epoch"):
            self.note(float(words.split("accuracy ")[1].split(maxsplit=1)[0]))

    def note(self, accuracy: float) -> None:
        self.marks.append((round(time.monotonic() - self.started, 1), accuracy))
        print(self.marks[-1], flush=True)


def measured_ours(path: Path, out: Path) -> Marks:
    """Loading the base and the frozen layers' states included."""
    clock = Clock()
    run(Plan("ours", out, Data(path)), clock)
    return clock.marks


class Tokenized(Dataset[Any]):
    """What the Trainer reads."""

    def __init__(self, examples: list[Example], labels: list[str], tokenizer: Any) -> None:
        texts = [e.texts[0] for e in examples]
        self._ids = tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
        self._labels = [labels.index(str(e.gold)) for e in examples]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"input_ids": self._ids[place], "labels": self._labels[place]}


def measured_plain(path: Path, epochs: int, folder: str) -> Marks:
    clock = Clock()
    read, base = read_data(Data(path), 0), find_base(None, None).folder
    labels = sorted({str(e.gold) for e in [*read.train, *read.dev]})
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(labels)
    )
    targets = ["query", "key", "value", "dense"]
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=targets)
    schedule = Schedule()

    def accuracy(said: transformers.EvalPrediction) -> dict[str, float]:
        share = float(np.mean(np.asarray(said.predictions).argmax(-1) == said.label_ids))
        clock.note(share)
        return {"accuracy": share}

    asked = transformers.TrainingArguments(
        folder, num_train_epochs=epochs, learning_rate=schedule.lr, report_to="none",
        per_device_train_batch_size=32, per_device_eval_batch_size=64, eval_strategy="epoch",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    transformers.Trainer(
        get_peft_model(model, lora), asked, transformers.DataCollatorWithPadding(tokenizer),
        Tokenized(read.train, labels, tokenizer), Tokenized(read.dev, labels, tokenizer),
        compute_metrics=accuracy,
    ).train()  # fmt: skip
    return clock.marks


if __name__ == "__main__":
    main()
