"""How good the shipped adapters are, asked of a running server over HTTP.

    make serve                              # in another terminal
    python -m benchmarks.accuracy --data ../shared/data [--url http://127.0.0.1:8080] [task …]

Accuracy of /classify on the official test split (sentiment: on Amazon reviews, a domain it was
never trained on), and of the 10 nearest neighbours among the training texts by /embed vectors, with
the adapter and without. Of `rerank`: whether it orders the 20 texts that are nearest by the base's
cosine better than the cosine does, for intents that it was never trained on. The last line is one
JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import httpx
import numpy as np

from examples.labelled_data import Example, banking77, clinc150, load, split_of

TASKS = ["banking77", "clinc150", "sentiment", "rerank"]
NEIGHBOURS = 10
LISTED = 20
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
        return ranking(client, folder)
    data = load(task, folder)
    return {
        "test_rows": len(data.test),
        "accuracy": accuracy(client, task, data.test),
        "knn_with_adapter": neighbours(client, task, data.train, data.test),
        "knn_without": neighbours(client, "base", data.train, data.test),
    }


def ranking(client: httpx.Client, data: Path) -> dict[str, float]:
    """What a reranker is for: to order what the vectors found.

    Each official test text of a held-out intent with the LISTED training texts of such intents that
    are nearest by the base's cosine, where these are of its intent and of others. AUC: how often a
    text of its intent is before one of another. first: how often one of its intent is the first.
    """
    found = []
    for source in (banking77(data / "banking77"), clinc150(data / "clinc150")):
        known = [e for e in source.train if split_of(source, e.label) == "test"]
        queries = [e for e in source.test if split_of(source, e.label) == "test"]
        cosines = vectors(client, "base", queries) @ vectors(client, "base", known).T
        for query, row in zip(queries, cosines, strict=True):
            nearest = np.argsort(-row)[:LISTED]
            right = np.array([known[i].label == query.label for i in nearest])
            if right.all() or not right.any():
                continue
            body = {"query": query.text, "texts": [known[i].text for i in nearest]}
            answer = client.post("/rerank?adapter=rerank", json=body).raise_for_status().json()
            scores = np.zeros(LISTED)
            scores[[entry["index"] for entry in answer]] = [entry["score"] for entry in answer]
            ways = [row[nearest], scores]
            found.append([*(before(w, right) for w in ways), *(right[w.argmax()] for w in ways)])
    names = ["auc_of_cosine", "auc", "first_of_cosine", "first"]
    means = np.array(found, dtype=float).mean(0)
    return {"lists": len(found), **dict(zip(names, means.round(4).tolist(), strict=True))}


def before(scores: np.ndarray, right: np.ndarray) -> float:
    """Of all pairs of a right one and another, how many have the right one above; equal ones half."""
    away = scores[right][:, None] - scores[~right][None]
    return float(((away > 0) + 0.5 * (away == 0)).mean())


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
