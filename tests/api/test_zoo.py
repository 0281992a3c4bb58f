"""What versions 0.8 to 0.21 of PEFT have saved is answered as they answered it, or refused by
name.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from tests.live import LiveServer, live_server
from tests.oracles import FP32, files_of, put
from tests.tiny import tiny_tokenizer
from tests.zoo.base import CONFIGS, IDS, save_base

MADE = Path(__file__).parent.parent / "zoo" / "made"
TEXT = "c d e z g"  # the tiny tokenizer's words for IDS
CHANGED = {"0.12.0-bert-lokr", "0.17.1-bert-oft"}  # PEFT itself computes these otherwise today
REFUSED = {"0.8.2-bert-oft", "0.8.2-roberta-all-linear", "0.10.0-bert-all-linear"}
FOLDERS = sorted(folder.name for folder in MADE.iterdir())


def arch_of(folder: str) -> str:
    whole = folder.split("-", 1)[1]
    return next(arch for arch in CONFIGS if whole.startswith(f"{arch}-"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("zoo")
    found = {arch: save_base(arch, root / arch) for arch in CONFIGS}
    for base in found.values():
        tiny_tokenizer().save_pretrained(base)
    return found


@pytest.fixture(scope="module")
def servers(
    bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, LiveServer]]:
    root = tmp_path_factory.mktemp("servers")
    running = {
        arch: live_server(model=str(base), store=root / arch, adapters_dir=root / "none")
        for arch, base in bases.items()
    }
    yield running
    for server in running.values():
        server.stop()


def logits(server: LiveServer) -> torch.Tensor:
    found = server.post("/classify?adapter=x", inputs=TEXT, raw_scores=True)
    return torch.tensor([e["score"] for e in sorted(found, key=lambda e: e["label"])])


@pytest.mark.parametrize("name", [n for n in FOLDERS if n not in REFUSED | CHANGED])
def test_an_old_versions_file_is_answered_as_that_version_answered(
    servers: dict[str, LiveServer], tmp_path: Path, name: str
) -> None:
    server, folder = servers[arch_of(name)], MADE / name
    oracle = json.loads((folder / "oracle.json").read_text())
    assert oracle["ids"] == IDS
    if oracle["task"] == "SEQ_CLS":
        put(server.client, "x", folder)
        assert_close(logits(server), torch.tensor(oracle["logits"]), **FP32)
        return
    golden = {"input": TEXT, "logits": oracle["logits"], "tolerance": 1e-5}
    files = files_of(folder) | {"golden.jsonl": ("golden.jsonl", json.dumps(golden).encode())}
    query = "?task=tokens" if name.endswith("bert-add-adapter") else ""
    answer = server.client.put(f"/adapters/x{query}", files=files)
    assert answer.status_code in (200, 201), answer.text
    assert (answer.json()["task"], answer.json()["certified"]) == ("tokens", 1)


@pytest.mark.parametrize("name", sorted(CHANGED))
def test_what_peft_computes_otherwise_today_is_todays_and_warned_of(
    servers: dict[str, LiveServer], bases: dict[str, Path], name: str
) -> None:
    arch, folder = arch_of(name), MADE / name
    answer = put(servers[arch].client, "x", folder)
    assert any("served as PEFT 0.21 loads" in warning for warning in answer["warnings"])
    model = AutoModelForSequenceClassification.from_pretrained(bases[arch], num_labels=3)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of OFT, too
        today = PeftModel.from_pretrained(model, folder).eval()(torch.tensor([IDS])).logits[0]
    assert_close(logits(servers[arch]), today, **FP32)
    then = torch.tensor(json.loads((folder / "oracle.json").read_text())["logits"])
    assert (today - then).abs().max() > 1e-3


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_peft_reads_no_more_is_refused_with_that_reason(
    servers: dict[str, LiveServer], name: str
) -> None:
    answer: Any = servers[arch_of(name)].client.put("/adapters/x", files=files_of(MADE / name))
    assert answer.status_code == 422
    assert any("reads no more" in p["reason"] for p in answer.json()["problems"])


def test_biases_that_peft_never_saved_are_said_to_be_lost(servers: dict[str, LiveServer]) -> None:
    lost = put(servers["bert"].client, "x", MADE / "0.14.0-bert-bias-lora")["warnings"]
    kept = put(servers["bert"].client, "x", MADE / "0.21.2-bert-bias-lora")["warnings"]
    assert any("saved none of the biases" in w for w in lost)
    assert not any("saved none of the biases" in w for w in kept)


def test_the_given_back_folder_of_an_old_file_is_the_same_to_peft(
    servers: dict[str, LiveServer],
) -> None:
    """modules_to_save inside of the names is gone from it, and the values stay."""
    server, folder = servers["roberta"], MADE / "0.15.1-roberta-bias-all"
    put(server.client, "x", folder)
    before = logits(server)
    assert server.client.put("/adapters/x", content=server.client.get("/adapters/x/files").content)
    assert_close(logits(server), before, **FP32)
    assert server.client.get("/adapters/x").json()["tensors"]["ignored"] == []
