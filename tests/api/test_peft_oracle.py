"""Over HTTP, on the embedded base: the very numbers of PEFT and of the plain model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.live import LiveServer
from tests.oracles import (
    FP32,
    SENTENCES,
    make_adapter,
    peft_embeddings,
    peft_logits,
    plain_embeddings,
    put,
    sentences,
)

KINDS: list[dict[str, object]] = [
    {"r": 8, "target_modules": ["query", "value"]},
    {"r": 4, "target_modules": ["query", "key", "value", "dense"], "lora_alpha": 32},
    {"r": 16, "target_modules": ["dense"], "use_rslora": True},
    {"r": 2, "target_modules": "all-linear"},
    {"r": 8, "target_modules": ["query", "dense"], "rank_pattern": {"query": 3},
     "alpha_pattern": {"layer.1.output.dense": 40}},
    {"r": 1, "target_modules": ["pooler.dense", "key"]},
]  # fmt: skip


@pytest.fixture(scope="module")
def embedders(
    minilm: Path, minilm_server: LiveServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Six embedding adapters of different rank and targets, uploaded."""
    made = {}
    for i, kind in enumerate(KINDS):
        folder = make_adapter(minilm, tmp_path_factory.mktemp(f"e{i}"), i, **kind)
        put(minilm_server.client, f"e{i}", folder)
        made[f"e{i}"] = folder
    return made


@pytest.fixture(scope="module")
def classifiers(
    minilm: Path, minilm_server: LiveServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, int]]:
    """Two classification adapters with 3 and 77 labels, uploaded."""
    made = {}
    for i, labels in enumerate((3, 77)):
        folder = make_adapter(
            minilm,
            tmp_path_factory.mktemp(f"c{i}"),
            20 + i,
            labels=labels,
            r=4 + i,
            target_modules=["query", "value", "dense"],
        )
        put(minilm_server.client, f"c{i}", folder)
        made[f"c{i}"] = (folder, labels)
    return made


def test_without_an_adapter_it_is_the_plain_model(minilm: Path, minilm_server: LiveServer) -> None:
    texts = sentences(20)
    served = torch.tensor(minilm_server.post("/embed", inputs=texts))
    assert_close(served, plain_embeddings(minilm, texts), **FP32)


@pytest.mark.parametrize("merged", [False, True])
def test_a_mixed_batch_of_64_equals_peft_row_by_row(
    minilm: Path,
    minilm_server: LiveServer,
    embedders: dict[str, Path],
    classifiers: dict[str, tuple[Path, int]],
    merged: bool,
) -> None:
    client, rng = minilm_server.client, random.Random(1)
    folders = {**embedders, **{n: f for n, (f, _) in classifiers.items()}}
    if merged:
        for name in ("e0", "e3", "c1"):
            assert client.post(f"/adapters/{name}/merge").json()["merged"]
    names: list[str | None] = [rng.choice([None, *folders]) for _ in range(64)]
    texts = sentences(64, seed=2)
    answer = client.post("/embed", json={"inputs": texts, "adapters": names})
    served = torch.tensor(answer.json())
    for name in {n for n in names if n in embedders} | {None}:
        rows = [i for i, n in enumerate(names) if n == name]
        mine = [texts[i] for i in rows]
        wanted = (
            plain_embeddings(minilm, mine)
            if name is None
            else peft_embeddings(minilm, folders[name], mine)
        )
        assert_close(served[rows], wanted, **FP32)
    for name in folders:
        client.post(f"/adapters/{name}/unmerge")


@pytest.mark.parametrize("merged", [False, True])
def test_logits_equal_peft_beside_other_adapters(
    minilm: Path,
    minilm_server: LiveServer,
    classifiers: dict[str, tuple[Path, int]],
    merged: bool,
) -> None:
    client = minilm_server.client
    if merged:
        client.post("/adapters/c0/merge")
    texts = sentences(30, seed=3)
    names = [random.Random(i).choice(list(classifiers)) for i in range(30)]
    body = {"inputs": texts, "adapters": names, "raw_scores": True}
    served = client.post("/classify", json=body).json()
    for name, (folder, labels) in classifiers.items():
        rows = [i for i, n in enumerate(names) if n == name]
        wanted = peft_logits(minilm, folder, labels, [texts[i] for i in rows])
        for i, logits in zip(rows, wanted, strict=True):
            by_label = {e["label"]: e["score"] for e in served[i]}
            got = torch.tensor([by_label[f"LABEL_{k}"] for k in range(labels)])
            assert_close(got, logits, rtol=0, atol=1e-5)
    client.post("/adapters/c0/unmerge")


def test_scores_are_the_softmax_of_pefts_logits_best_first(
    minilm: Path, minilm_server: LiveServer, classifiers: dict[str, tuple[Path, int]]
) -> None:
    folder, labels = classifiers["c1"]
    served = minilm_server.post("/classify?adapter=c1", inputs=SENTENCES[0])
    wanted = peft_logits(minilm, folder, labels, SENTENCES[:1])[0].softmax(-1)
    order = wanted.argsort(descending=True).tolist()
    assert [e["label"] for e in served] == [f"LABEL_{i}" for i in order]
    assert_close(torch.tensor([e["score"] for e in served]), wanted[order], **FP32)


def test_pairs_equal_peft(
    minilm: Path, minilm_server: LiveServer, classifiers: dict[str, tuple[Path, int]]
) -> None:
    pairs = [(SENTENCES[0], SENTENCES[1]), (SENTENCES[2], SENTENCES[7])]
    folder, labels = classifiers["c0"]
    body = {"inputs": [list(p) for p in pairs], "raw_scores": True}
    served = minilm_server.post("/classify?adapter=c0", **body)
    wanted = peft_logits(minilm, folder, labels, pairs)
    for answer, logits in zip(served, wanted, strict=True):
        got = torch.tensor([e["score"] for e in sorted(answer, key=lambda e: e["label"])])
        assert_close(got, logits, **FP32)


def test_plain_rows_are_bit_equal_with_and_without_adapters_beside(
    minilm_server: LiveServer, embedders: dict[str, Path]
) -> None:
    texts, rng = sentences(64, seed=5), random.Random(5)
    names = [rng.choice([None, "e0", "e1", "e2", "e3"]) for _ in texts]
    octets = {"Accept": "application/octet-stream"}
    client = minilm_server.client

    def ask(adapters: list[str | None]) -> torch.Tensor:
        body = {"inputs": texts, "adapters": adapters}
        answer = client.post("/embed", json=body, headers=octets)
        shape = [int(n) for n in answer.headers["x-shape"].split(",")]
        return torch.frombuffer(bytearray(answer.content), dtype=torch.float32).view(shape)

    plain, mixed = ask([None] * 64), ask(names)
    client.post("/adapters/e1/merge")
    with_merged = ask(names)
    client.post("/adapters/e1/unmerge")
    rows = [i for i, name in enumerate(names) if name is None]
    assert torch.equal(mixed[rows], plain[rows])
    assert torch.equal(with_merged[rows], plain[rows])
    others = [i for i, name in enumerate(names) if name is not None]
    assert (mixed[others] - plain[others]).abs().amax(1).min() > 1e-3


def test_a_plain_text_has_the_same_bits_alone_and_in_any_batch(
    minilm_server: LiveServer, embedders: dict[str, Path]
) -> None:
    texts = sentences(40, seed=6)
    client = minilm_server.client
    names = [("e0", None, "e3")[i % 3] for i in range(40)]
    batch = client.post("/embed", json={"inputs": texts, "adapters": names}).json()
    for i in [i for i, name in enumerate(names) if name is None]:
        assert client.post("/embed", json={"inputs": texts[i]}).json() == [batch[i]]
