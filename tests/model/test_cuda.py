"""The same answers on a GPU. Skipped where there is none; the CPU twin is every other test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.conftest import Serve
from tests.kinds import make_kind
from tests.oracles import make_adapter, put, sentences

KINDS = [
    "dora",
    "embedding, dora",
    "bias all",
    "norms whole",
    "words whole",
    "tokens",
    "pissa",
    "loha",
]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def test_the_gpu_gives_the_cpus_answers(serve: Serve, minilm: Path, tmp_path: Path) -> None:
    adapters = {
        "a": make_adapter(minilm, tmp_path / "a", 1, target_modules="all-linear"),
        "c": make_adapter(minilm, tmp_path / "c", 2, labels=5, r=3),
    }
    for i, kind in enumerate(KINDS):
        adapters[f"k{i}"] = make_kind(kind, "bert", minilm, tmp_path / f"k{i}")
    texts = sentences(48)
    every = [None, *adapters]
    names = [every[i % len(every)] for i in range(48)]
    found = {}
    for device in ("cpu", "cuda"):
        server = serve(device=device, dtype="float32", store=tmp_path / device)
        for name, folder in adapters.items():
            put(server.client, name, folder)
        body = {"inputs": texts, "adapters": names}
        mixed = torch.tensor(server.post("/embed", **body))
        plain = torch.tensor(server.post("/embed", inputs=texts))
        server.client.post("/adapters/a/merge")
        merged = torch.tensor(server.post("/embed", **body))
        rows = [i for i, name in enumerate(names) if name is None]
        assert torch.equal(mixed[rows], plain[rows])
        assert torch.equal(merged[rows], plain[rows])
        assert server.client.get("/info?verify=true").json()["base"]["intact"]
        found[device] = (mixed, merged)
    for cpu, cuda in zip(found["cpu"], found["cuda"], strict=True):
        assert_close(cuda, cpu, rtol=0, atol=1e-5)
