"""Pairs to train the shipped reranker on, from banking77 and clinc150.

    python -m examples.rerank_pairs --data ../shared/data --out build/rerank
    bert-lora train build/rerank/train.csv --dev build/rerank/dev.csv --task rerank --name rerank \
        --layers 6 --epochs 2 --out adapters/rerank

A text stands three times: beside one of its own intent, beside one of the 30 nearest of another
intent by the base's cosine (what a reranker has to tell apart), and beside any of another. Intents
are held out as a whole: see labelled_data.split_of.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

import numpy as np

import bert_lora
from examples.labelled_data import banking77, clinc150, split_of

TEXTS = {"train": 4000, "dev": 1000}  # of both sources together
NEAREST = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("build/rerank"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    with bert_lora.load() as base:
        for name, count in TEXTS.items():
            rows = []
            for source in (banking77(args.data / "banking77"), clinc150(args.data / "clinc150")):
                known = [e for e in source.train if split_of(source, e.label) == name]
                vectors = np.asarray(base.embed([e.text for e in known]))
                labels = np.array([e.label for e in known])
                for i in rng.sample(range(len(known)), min(count // 2, len(known))):
                    same = [j for j in np.flatnonzero(labels == labels[i]) if j != i]
                    others = np.flatnonzero(labels != labels[i])
                    near = others[np.argsort(-(vectors[others] @ vectors[i]))[:NEAREST]]
                    beside = [(rng.choice(same), 1), (rng.choice(near), 0), (rng.choice(others), 0)]
                    rows += [(known[i].text, known[j].text, relevant) for j, relevant in beside]
            rng.shuffle(rows)
            with (args.out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("query", "passage", "relevant"), *rows])
            print(args.out / f"{name}.csv", len(rows))


if __name__ == "__main__":
    main()
