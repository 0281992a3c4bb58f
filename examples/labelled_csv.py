"""The data sets of the shipped adapters as CSV files, for bert-lora train.

    python -m examples.labelled_csv --data ../shared/data --out build/data
    bert-lora train build/data/clinc150/train.csv --dev build/data/clinc150/dev.csv \
        --test build/data/clinc150/test.csv --name clinc150 --out adapters/clinc150

The other commands stand in the adapters' cards. The reranker's files: rerank_pairs.py.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from examples.labelled_data import load

TASKS = ("banking77", "clinc150", "sentiment")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("build/data"))
    args = parser.parse_args()
    for task in TASKS:
        source = load(task, args.data)
        (args.out / task).mkdir(parents=True, exist_ok=True)
        for name in ("train", "dev", "test"):
            rows = [(e.text, e.label) for e in getattr(source, name)]
            if not rows:
                continue
            with (args.out / task / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
            print(args.out / task / f"{name}.csv", len(rows))


if __name__ == "__main__":
    main()
