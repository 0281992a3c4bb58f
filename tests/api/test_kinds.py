"""Every kind of adapter that PEFT saves, on every architecture: PEFT's numbers over HTTP.

Each alone and merged, all of them in one mixed batch, and the base beside them bit for bit.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import TrainableTokensConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from tests.kinds import KINDS, NAMES, make_kind, peft_answers
from tests.live import LiveServer, live_server
from tests.oracles import FP32, encode, files_of, put
from tests.tiny import save_tiny_base

TEXTS = ["the card is lost", "how good is my money film?", "abc, the film! " * 10]
PATHLESS = ("albert", "modernbert", "jina_embeddings_v3", "nomic_bert", "gte")
UNMADE = {(arch, "one layer") for arch in PATHLESS}  # PEFT finds no layers there


LIKE_ROBERTA = {"camembert", "xlm-roberta"}  # its very modules: test_architectures.py has them


# In test_architectures.py with fewer kinds of adapters; here with all in make test-all.
LATER = {"roberta", "distilbert", "electra", "gte", "nomic_bert", "xlm-roberta-xl"}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name in LATER else [])
        for name in NAMES
        if name not in LIKE_ROBERTA
    ],
)
def arch(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, LiveServer]]:
    """An architecture, its tiny base and a server of it."""
    root = tmp_path_factory.mktemp(request.param)
    base = save_tiny_base(request.param, root / "base")
    server = live_server(model=str(base), store=root / "store", adapters_dir=root / "none")
    yield request.param, base, server
    server.stop()


@pytest.fixture(scope="module")
def made(
    arch: tuple[str, Path, LiveServer], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[str, Path, Tensor]]:
    """kind -> (name on the server, folder, PEFT's answers); every one uploaded."""
    name, base, server = arch
    inputs = [encode(base, text, 80) for text in TEXTS]
    found = {}
    for i, kind in enumerate(k for k in KINDS if (name, k) not in UNMADE):
        folder = make_kind(kind, name, base, tmp_path_factory.mktemp(f"a{i}"), seed=i)
        put(server.client, f"a{i}", folder)
        found[kind] = (f"a{i}", folder, torch.stack(peft_answers(base, folder, inputs)))
    return found


def ask(server: LiveServer, names: list[str | None], texts: list[str]) -> Tensor:
    """Embeddings as they come out of the mean, not normalised."""
    body = {"inputs": texts, "adapters": names, "normalize": False}
    return torch.tensor(server.client.post("/embed", json=body).json())


def test_every_kind_is_pefts_unmerged_and_merged_and_leaves_the_base_alone(
    arch: tuple[str, Path, LiveServer], made: dict[str, Any], subtests: pytest.Subtests
) -> None:
    server = arch[2]
    plain = ask(server, [None] * 3, TEXTS)
    for kind, (name, _, wanted) in made.items():
        for step in ("merge", "unmerge"):
            with subtests.test(kind=kind, then=step):
                got = ask(server, [None] * 3 + [name] * 3, TEXTS * 2)
                assert torch.equal(got[:3], plain)
                assert_close(got[3:], wanted, **FP32)
                assert (wanted - plain).abs().max() > 1e-3
            server.client.post(f"/adapters/{name}/{step}")


def test_one_batch_of_all_kinds_and_none_is_pefts(
    arch: tuple[str, Path, LiveServer], made: dict[str, Any]
) -> None:
    names: list[str | None] = [name for name, _, _ in made.values()]
    wanted = [answers[i % 3] for i, (_, _, answers) in enumerate(made.values())]
    texts = [TEXTS[i % 3] for i in range(len(names))]
    alone = ask(arch[2], [None], TEXTS[:1])
    got = ask(arch[2], [None, *names], [TEXTS[0], *texts])
    assert torch.equal(got[:1], alone)
    assert_close(got[1:], torch.stack(wanted), **FP32)


def test_the_folder_that_is_given_back_is_the_same_to_peft(
    arch: tuple[str, Path, LiveServer],
    made: dict[str, Any],
    tmp_path: Path,
    subtests: pytest.Subtests,
) -> None:
    _, base, server = arch
    inputs = [encode(base, text, 80) for text in TEXTS]
    for kind, (adapter, _, wanted) in made.items():
        with subtests.test(kind=kind):
            answer = server.client.get(f"/adapters/{adapter}/files")
            assert (answer.status_code, answer.headers["content-type"]) == (
                200,
                "application/x-tar",
            )
            folder = tmp_path / adapter
            with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
                archive.extractall(folder, filter="data")
            assert_close(torch.stack(peft_answers(base, folder, inputs)), wanted, **FP32)


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
@pytest.mark.parametrize("kind", ["plain", "dora", "bias all", "all-linear"])
def test_heads_of_every_architecture_are_pefts(
    arch: tuple[str, Path, LiveServer], tmp_path: Path, task: str, kind: str
) -> None:
    name, base, server = arch
    folder = make_kind(kind, name, base, tmp_path / "head", task=task, labels=5)
    put(server.client, "head", folder)
    goldens = peft_answers(base, folder, [encode(base, t, 80) for t in TEXTS], task=task, labels=5)
    for text, wanted in zip(TEXTS, goldens, strict=True):
        assert_close(logits_of(server, "head", text, task), wanted, **FP32)
    server.client.delete("/adapters/head")


def logits_of(server: LiveServer, name: str, text: str, task: str) -> Tensor:
    """The raw logits, from the answers where each label comes once; tokens: from the engine."""
    if task == "SEQ_CLS":
        body = {"inputs": text, "raw_scores": True}
        answer = server.client.post(f"/classify?adapter={name}", json=body).json()
        return torch.tensor([e["score"] for e in sorted(answer, key=lambda e: e["label"])])
    from app.engine.tokenizer import Cut, tokenize
    from app.model.sequence import Sequence, Want

    serving = server.app.state.serving
    version = serving.runtime.registry.ready(serving.runtime.registry.get(name))
    tokens = tokenize(serving.runtime.tokenizer, [text], Cut(80))[0]
    sequence = Sequence(tokens.ids, tokens.types, Want("logits"), version)
    found: Tensor = serving.runtime.engine.encoder.run([sequence])[0]
    return found


def test_two_names_for_one_key_and_mixed_dtypes_are_read_as_peft_reads_them(
    arch: tuple[str, Path, LiveServer], tmp_path: Path
) -> None:
    name, base, server = arch
    folder = make_kind("dora", name, base, tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    half = [torch.float16, torch.bfloat16, torch.float32]
    tensors = {k: t.to(half[i % 3]) for i, (k, t) in enumerate(sorted(load_file(path).items()))}
    save_file(tensors, path)
    wanted = torch.stack(peft_answers(base, folder, [encode(base, t, 80) for t in TEXTS]))
    named = {
        k.replace(".weight", ".sentiment.weight") if "lora_" in k and k.endswith("weight")
        else f"{k}.sentiment": t
        for k, t in tensors.items()
    }  # fmt: skip
    for content in (tensors, {k: t.clone() for k, t in named.items()}):
        save_file(content, path)
        put(server.client, "dtypes", folder)
        assert_close(ask(server, ["dtypes"] * 3, TEXTS), wanted, **FP32)
    other = {"base_model.model.x.lora_A.other.weight": torch.ones(2, 2)}
    save_file({k: t.clone() for k, t in named.items()} | other, path)
    answer = server.client.put("/adapters/dtypes", files=files_of(folder))
    assert answer.status_code == 422
    assert "several adapters: other, sentiment" in answer.json()["error"]
    server.client.delete("/adapters/dtypes")


def test_rows_of_tokens_that_no_probe_holds_are_no_reason_to_refuse(
    arch: tuple[str, Path, LiveServer], tmp_path: Path
) -> None:
    name, base, server = arch
    config = TrainableTokensConfig(token_indices=[84, 83], target_modules=[NAMES[name].words])
    folder = make_kind("", name, base, tmp_path / "a", config=config)
    report = put(server.client, "rare", folder)
    assert report["delta"]["relative"] > 0
    server.client.delete("/adapters/rare")
