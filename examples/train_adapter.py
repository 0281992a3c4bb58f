"""Train one of the shipped adapters with PEFT on the embedded base.

    python examples/train_adapter.py banking77 --data ../shared/data --out adapters/banking77

`--dev 0.1` holds a tenth of the training split back (or uses the official one) and prints its
accuracy after every epoch: choose `--epochs` there, then train on everything with `--dev 0`.
The official test split is never read here; `benchmarks/accuracy.py` measures it over HTTP.
The reranker is made by `bert-lora train` (rerank_pairs.py), as new adapters should be (docs/training.md).
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

import torch
from labelled_data import Dataset, Example, load
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    get_cosine_schedule_with_warmup,
)

from app.model.embedded import MODEL_ID, embedded_base

MAX_LENGTH = 128


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["banking77", "clinc150", "sentiment"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--dev", type=float, default=0.0, help="share of the training split held back"
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="autocast: 3 x faster with AMX")
    return parser.parse_args()


def split(data: Dataset, share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, dev); the official development split where there is one."""
    if share == 0:
        return data.train, []
    if data.dev:
        return data.train, data.dev
    rows = random.Random(seed).sample(data.train, len(data.train))
    held = int(len(rows) * share)
    return rows[held:], rows[:held]


def batches(rows: list[Example], size: int, seed: int) -> list[list[Example]]:
    """Shuffled batches of texts of like length: sorted within pools of 16 batches, to pad little."""
    rng = random.Random(seed)
    rows = rng.sample(rows, len(rows))
    pools = [rows[i : i + 16 * size] for i in range(0, len(rows), 16 * size)]
    cut = [
        pool[i : i + size]
        for pool in (sorted(p, key=lambda e: len(e.text)) for p in pools)
        for i in range(0, len(pool), size)
    ]
    rng.shuffle(cut)
    return cut


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    data = load(args.task, args.data)
    train, dev = split(data, args.dev, args.seed)
    index = {label: i for i, label in enumerate(data.labels)}
    base = embedded_base()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=len(index),
        id2label=dict(enumerate(data.labels)),
        label2id=index,
    )
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=args.rank,
        lora_alpha=args.alpha,
        lora_dropout=args.dropout,
        target_modules=["query", "key", "value", "dense"],
    )
    model = get_peft_model(model, config)
    model.print_trainable_parameters()
    decayed = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(decayed, lr=args.lr, weight_decay=0.01)
    steps = args.epochs * len(batches(train, args.batch, 0))
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    loss_of = torch.nn.CrossEntropyLoss()

    def logits(rows: list[Example]) -> torch.Tensor:
        texts = [e.text for e in rows]
        inputs = tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            return model(**inputs).logits.float()

    def gold(rows: list[Example]) -> torch.Tensor:
        """[N, L]: each row's certainty on its label, the rest spread over the others."""
        rest = torch.tensor([(1 - e.certainty) / (len(index) - 1) for e in rows])
        target = rest[:, None].repeat(1, len(index))
        for i, e in enumerate(rows):
            target[i, index[e.label]] = e.certainty
        return target

    for epoch in range(args.epochs):
        model.train()
        started, total = time.monotonic(), 0.0
        for rows in batches(train, args.batch, 1000 * args.seed + epoch):
            loss = loss_of(logits(rows), gold(rows))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(decayed, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() * len(rows)
        line = (
            f"epoch {epoch + 1}: loss {total / len(train):.4f}, {time.monotonic() - started:.0f} s"
        )
        if dev:
            model.eval()
            with torch.inference_mode():
                right = sum(
                    int((logits(rows).argmax(-1) == gold(rows).argmax(-1)).sum())
                    for rows in batches(dev, 64, 0)
                )
            line += f", dev accuracy {right / len(dev):.4f}"
        print(line, flush=True)
    if args.out:
        save(model, args.out)
        print(f"saved {args.out} with: python {' '.join(sys.argv)}")


def save(model: torch.nn.Module, out: Path) -> None:
    """The PEFT folder, and the labels in a config.json beside it (PEFT itself keeps none)."""
    model.eval()
    model.peft_config["default"].base_model_name_or_path = MODEL_ID  # not this machine's path
    # Without the vocabulary's path PEFT would ask the hub whether it was resized.
    model.save_pretrained(out, save_embedding_layers=False)
    model.get_base_model().config.to_json_file(out / "config.json")


if __name__ == "__main__":
    main()
