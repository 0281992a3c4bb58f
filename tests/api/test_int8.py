"""BERT_LORA_DTYPE=int8 over HTTP: near float32, a text's bits its own, adapters as PEFT has them on
a base of the same whole numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from app.assemble import StartRefused
from tests.conftest import Serve
from tests.live import LiveServer, live_server
from tests.oracles import (
    SENTENCES,
    encode,
    make_adapter,
    mean_embedding,
    plain_embeddings,
    put,
    sentences,
)

LAYERS = ["query", "key", "value", "dense"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": LAYERS},
    "dora": {"target_modules": LAYERS, "use_dora": True},
    "bias": {"target_modules": LAYERS, "bias": "all"},
    "words": {"target_modules": ["query", "word_embeddings"]},
    "whole": {"target_modules": ["query"], "modules_to_save": ["intermediate.dense"]},
}


def embed(server: LiveServer, texts: list[str], query: str = "") -> Tensor:
    answer = server.client.post(f"/embed{query}", json={"inputs": texts})
    return torch.tensor(answer.raise_for_status().json())


def test_vectors_are_near_float32s_and_in_a_space_of_their_own(
    serve: Serve, minilm_server: LiveServer, minilm: Path
) -> None:
    server = serve(dtype="int8")
    texts = [*SENTENCES, *sentences(60)]
    cosines = F.cosine_similarity(embed(server, texts), plain_embeddings(minilm, texts))
    assert cosines.mean() >= 0.998 and cosines.min() >= 0.995
    assert cosines.max() < 1 - 1e-6  # it is not float32 that answers
    info, plain = (s.client.get("/info").json() for s in (server, minilm_server))
    assert info["model_dtype"] == "int8"
    assert info["slow_paths"] == plain["slow_paths"]
    assert info["embedding_space"] != plain["embedding_space"]


def test_a_texts_bits_do_not_depend_on_the_texts_beside_it(serve: Serve) -> None:
    server, texts = serve(dtype="int8"), sentences(40)
    together = embed(server, texts)
    for i in range(0, 40, 5):
        assert torch.equal(embed(server, [texts[i]])[0], together[i]), i


def quantised_base(folder: Path, into: Path) -> Path:
    """The base in float32, its Linears and its longer tables rounded to 255 steps a row by numpy."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        linear = "LayerNorm" not in name and "embeddings" not in name
        if tensor.dim() == 2 and (linear or tensor.shape[0] > tensor.shape[1]):
            weight = tensor.numpy()
            step = np.abs(weight).max(1, keepdims=True) / np.float32(127)
            step[step == 0] = 1
            tensors[name] = torch.from_numpy(np.rint(weight / step) * step)
    into.mkdir()
    for file in folder.iterdir():
        (into / file.name).write_bytes(file.read_bytes())
    save_file(tensors, into / "model.safetensors", {"format": "pt"})
    return into


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_runs_over_whole_numbers_as_peft_has_it(
    serve: Serve, tiny_bert: Path, tmp_path: Path, kind: str
) -> None:
    """Once more merged. PEFT on a base of the very same weights; rows of x lose 15 bits' worth."""
    adapter = make_adapter(tiny_bert, tmp_path / "adapter", 3, scale=5, **KINDS[kind])
    base = quantised_base(tiny_bert, tmp_path / "base")
    tuned = PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter).eval()
    wanted = torch.stack([mean_embedding(tuned, encode(base, t, 80)) for t in SENTENCES])
    server = serve(model=str(tiny_bert), dtype="int8")
    digest = server.client.get("/info?verify=true").json()["base"]["digest"]
    put(server.client, "a", adapter)
    plain, own = embed(server, SENTENCES), embed(server, SENTENCES, "?adapter=a")
    assert (own - plain).abs().max() > 2e-3
    assert (own - wanted).abs().max() < 5e-5
    server.client.post("/adapters/a/merge").raise_for_status()
    assert (embed(server, SENTENCES, "?adapter=a") - wanted).abs().max() < 5e-5
    assert torch.equal(embed(server, SENTENCES), plain)
    server.client.post("/adapters/a/unmerge").raise_for_status()
    assert torch.equal(embed(server, SENTENCES, "?adapter=a"), own)
    info = server.client.get("/info?verify=true").json()["base"]
    assert info["intact"] and info["digest"] == info["digest_now"] == digest


def test_on_a_gpu_it_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(StartRefused, match=r"DTYPE=int8 is for CPUs.*DEVICE=cpu"):
        live_server(device="cuda", dtype="int8", store=tmp_path)
