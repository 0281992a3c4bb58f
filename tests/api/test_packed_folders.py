"""An upload of several folders: nothing of one adapter's neighbours is taken for its own."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch.testing import assert_close

from tests.live import live_server
from tests.oracles import FP32, files_of, peft_logits

W, C = "adapter_model.safetensors", "adapter_config.json"
Files = dict[str, bytes]
STRANGER = json.dumps(
    {
        "id2label": {"0": "x", "1": "y", "2": "z"},
        "problem_type": "multi_label_classification",
    }
).encode()


def tarred(files: Files, mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def zipped(files: Files) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


PACKINGS: dict[str, Any] = {
    "tar": lambda files: {"content": tarred(files)},
    "tar.gz": lambda files: {"content": tarred(files, "w:gz")},
    "zip": lambda files: {"content": zipped(files)},
    "form": lambda files: {"files": [("file", (name, content)) for name, content in files.items()]},
}


@pytest.fixture
def own(folders: dict[str, Path]) -> Files:
    """The three-label adapter's files."""
    return {name: content for name, (_, content) in files_of(folders["c"]).items()}


def scores(client: httpx.Client, name: str) -> torch.Tensor:
    body = {"inputs": "my card", "raw_scores": True}
    found = client.post(f"/classify?adapter={name}", json=body).json()
    return torch.tensor([e["score"] for e in sorted(found, key=lambda e: e["label"])])


def wanted(base: Path, folders: dict[str, Path]) -> torch.Tensor:
    return peft_logits(base, folders["c"], 3, ["my card"])[0]


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_config_of_a_folder_above_is_not_the_weights_own(
    served: httpx.Client, tiny_bert: Path, folders: dict[str, Path], own: Files, packing: str
) -> None:
    config = json.loads(own[C]) | {"lora_alpha": 1000}
    body = PACKINGS[packing](
        {f"m/{C}": json.dumps(config).encode(), f"m/checkpoint-500/{W}": own[W]}
    )
    refused = served.put("/adapters/mixed?task=classify", **body).json()
    assert "alpha is not in the file" in refused["error"]
    assert f"m/{C}" in [problem.get("tensor") for problem in refused["problems"]]
    answer = served.put("/adapters/mixed?task=classify&alpha=16", **body).json()
    assert any(f"m/{C}" in warning for warning in answer["warnings"])
    assert_close(scores(served, "mixed"), wanted(tiny_bert, folders), **FP32)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("neighbour", ["m/teacher", "n", ""])
def test_a_neighbours_labels_and_pooling_are_not_the_adapters(
    served: httpx.Client, own: Files, packing: str, neighbour: str
) -> None:
    strange = {
        "config.json": STRANGER,
        "modules.json": json.dumps(
            [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
        ).encode(),
        "1_Pooling/config.json": json.dumps({"pooling_mode": "cls"}).encode(),
    }
    files = {f"m/{name}": content for name, content in own.items()}
    files |= {f"{neighbour}/{name}".lstrip("/"): content for name, content in strange.items()}
    answer = served.put("/adapters/nested", **PACKINGS[packing](files)).json()
    assert answer["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert answer["pooling"] == "mean"
    assert sum("left aside" in warning for warning in answer["warnings"]) == 3
    got = served.post("/classify?adapter=nested", json={"inputs": "my card"}).json()
    assert sum(entry["score"] for entry in got) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("packing", PACKINGS)
def test_several_adapters_are_refused_by_path_and_one_is_picked(
    served: httpx.Client, tiny_bert: Path, folders: dict[str, Path], own: Files, packing: str
) -> None:
    other = {name: content for name, (_, content) in files_of(folders["a"]).items()}
    files = {f"out/{name}": content for name, content in other.items()}
    files |= {f"out/checkpoint-7/{name}": content for name, content in own.items()}
    body = PACKINGS[packing](files)
    refused = served.put("/adapters/one", **body)
    assert refused.status_code == 422
    assert all(path in refused.json()["error"] for path in (f"out/{W}", f"out/checkpoint-7/{W}"))
    assert served.put("/adapters/one?path=out/checkpoint-7", **body).status_code == 201
    assert_close(scores(served, "one"), wanted(tiny_bert, folders), **FP32)
    assert served.put("/adapters/one?path=out", **body).json()["task"] == "embed"
    nowhere = served.put("/adapters/one?path=in", **body)
    assert (nowhere.status_code, nowhere.json()["error_type"]) == (422, "adapter_rejected")


def test_a_second_safetensors_beside_the_weights_is_left_aside(
    served: httpx.Client, own: Files
) -> None:
    files = own | {"model.safetensors": b"x", "optimizer.safetensors": b"y"}
    for packing in PACKINGS.values():
        answer = served.put("/adapters/second", **packing(files))
        assert answer.status_code in (200, 201), answer.text
        said = " ".join(answer.json()["warnings"])
        assert "model.safetensors" in said and "optimizer.safetensors" in said
        unnamed = {"a.safetensors": own[W], "b.safetensors": own[W], C: own[C]}
        refused = served.put("/adapters/third", **packing(unnamed))
        assert refused.status_code == 422
        assert "a.safetensors, b.safetensors" in refused.json()["error"]


def test_a_file_that_comes_twice_is_named_with_both_spellings(
    served: httpx.Client, own: Files
) -> None:
    body = tarred({f"m/{W}": own[W], f"./m/{C}": own[C], f"m/{C}": own[C]})
    refused = served.put("/adapters/twice", content=body)
    assert refused.status_code == 422
    assert f"'./m/{C}' and 'm/{C}'" in refused.json()["error"]


def test_a_sources_path_names_a_folder_below_it(
    tiny_bert: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    whole = tmp_path / "sources" / "whole"
    (whole / "best").mkdir(parents=True)
    for name, (_, content) in files_of(folders["c"]).items():
        (whole / "best" / name).write_bytes(content)
    (whole / C).write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 1000}))
    server = live_server(
        model=str(tiny_bert), store=tmp_path / "store", adapters_dir=tmp_path / "none",
        source_dirs=str(tmp_path / "sources"),
    )  # fmt: skip
    try:
        refused = server.client.put("/adapters/x", json={"source": str(whole)})
        assert refused.status_code == 422 and f"best/{W}" in refused.json()["error"]
        outside = server.client.put("/adapters/x?path=../..", json={"source": str(whole)})
        assert outside.status_code == 422
        taken = server.client.put("/adapters/x?path=best", json={"source": str(whole)})
        assert taken.status_code == 201, taken.text
        assert_close(scores(server.client, "x"), wanted(tiny_bert, folders), **FP32)
    finally:
        server.stop()


def test_a_bare_file_has_no_folders(served: httpx.Client, own: Files) -> None:
    refused = served.put("/adapters/x?path=m&alpha=16", content=own[W])
    assert (refused.status_code, refused.json()["error_type"]) == (422, "adapter_rejected")
