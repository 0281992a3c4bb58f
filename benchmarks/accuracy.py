"""How good the shipped adapters are, asked of a running server over HTTP.

    make serve                              # in another terminal
    python -m benchmarks.accuracy --data ../shared/data [--url http://127.0.0.1:8080] [task …]

Accuracy of /classify on the official test split (sentiment: on Amazon reviews, a domain it was
never trained on), and of the 10 nearest neighbours among the training texts by /embed vectors, with
the adapter and without. Of `rerank`, by its name: how high the one text of the query's intent comes among 20, for
intents that it was never trained on, by its score and by the base's cosine. The last line is one JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np

from examples.labelled_data import Example, RankedList, load, ranked_lists

TASKS = ["banking77", "clinc150", "sentiment"]
NEIGHBOURS = 10
CLIENT_BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", nargs="*", default=TASKS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    args = parser.parse_args()
    found = {}
    with httpx.Client(base_url=args.url, timeout=600) as client:
        for task in args.task:
            version = client.get(f"/adapters/{task}").json()["version"][:12]
            found[task] = {"adapter": version, **measured(client, task, args.data)}
            print(task, found[task], flush=True)
    print(json.dumps(found))


def measured(client: httpx.Client, task: str, folder: Path) -> dict[str, float]:
    """What is measured of an adapter."""
    if task == "rerank":
        return ranking(client, ranked_lists(folder))
    data = load(task, folder)
    return {
        "test_rows": len(data.test),
        "accuracy": accuracy(client, task, data.test),
        "knn_with_adapter": neighbours(client, task, data.train, data.test),
        "knn_without": neighbours(client, "base", data.train, data.test),
    }


def ranking(client: httpx.Client, lists: list[RankedList]) -> dict[str, float]:
    """Mean reciprocal rank of the right text, and the share of lists in which it is the first."""
    texts = {text: Example(text, "") for row in lists for text in (row.query, *row.texts)}
    vector = dict(zip(texts, vectors(client, "base", list(texts.values())), strict=True))
    by_score, by_cosine = [], []
    for row in lists:
        body = {"query": row.query, "texts": row.texts, "raw_scores": True}
        answer = client.post("/rerank?adapter=rerank", json=body).raise_for_status().json()
        score = {entry["index"]: entry["score"] for entry in answer}
        by_score.append(place([score[i] for i in range(len(row.texts))], row.right))
        cosines = [float(vector[text] @ vector[row.query]) for text in row.texts]
        by_cosine.append(place(cosines, row.right))
    return {
        "lists": len(lists),
        "mrr": round(float(np.mean(1 / np.array(by_score))), 4),
        "first": round(float(np.mean(np.array(by_score) == 1)), 4),
        "mrr_of_cosine": round(float(np.mean(1 / np.array(by_cosine))), 4),
        "first_of_cosine": round(float(np.mean(np.array(by_cosine) == 1)), 4),
    }


def place(scores: Sequence[float], right: int) -> int:
    """1 for the best. Of equal scores the right one counts as the last."""
    return sum(score >= scores[right] for score in scores)


def accuracy(client: httpx.Client, adapter: str, rows: list[Example]) -> float:
    """Share of rows whose best label is the right one."""
    right = 0
    for part in parts(rows):
        body = {"inputs": [e.text for e in part], "top_k": 1}
        answer = client.post(f"/classify?adapter={adapter}", json=body).raise_for_status().json()
        right += sum(a[0]["label"] == e.label for a, e in zip(answer, part, strict=True))
    return round(right / len(rows), 4)


def neighbours(
    client: httpx.Client, adapter: str, known: list[Example], rows: list[Example]
) -> float:
    """Accuracy of the majority among the 10 training texts of the largest cosine."""
    index, asked = vectors(client, adapter, known), vectors(client, adapter, rows)
    right = 0
    for vector, row in zip(asked, rows, strict=True):
        near = np.argpartition(-(index @ vector), NEIGHBOURS)[:NEIGHBOURS]
        best = Counter(known[i].label for i in near).most_common(1)[0][0]
        right += best == row.label
    return round(right / len(rows), 4)


def vectors(client: httpx.Client, adapter: str, rows: list[Example]) -> np.ndarray:
    """Normalised embeddings [N, H]."""
    found = []
    for part in parts(rows):
        answer = client.post(
            f"/embed?adapter={adapter}",
            json={"inputs": [e.text for e in part], "normalize": True},
            headers={"Accept": "application/octet-stream"},
        ).raise_for_status()
        shape = [int(n) for n in answer.headers["x-shape"].split(",")]
        found.append(np.frombuffer(answer.content, "<f4").reshape(shape))
    return np.concatenate(found)


def parts(rows: list[Example]) -> list[list[Example]]:
    return [rows[i : i + CLIENT_BATCH] for i in range(0, len(rows), CLIENT_BATCH)]


if __name__ == "__main__":
    main()
