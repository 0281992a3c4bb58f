"""How much an adapter changes each module, told before it is served and after: against PEFT's own merge."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

from tests.oracles import files_of


def merged_changes(base: Path, adapter: Path) -> dict[str, float]:
    """||W' - W|| / ||W|| of every weight that PEFT's merge changes, in float64."""
    plain = dict(AutoModel.from_pretrained(base).named_parameters())
    tuned = PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter).merge_and_unload()
    changes = {}
    for name, weight in tuned.named_parameters():
        own = plain[name].detach().double()
        change = torch.linalg.norm(weight.detach().double() - own) / torch.linalg.norm(own)
        if name.endswith(".weight") and change > 0:
            changes[name.removesuffix(".weight")] = float(change)
    return changes


def test_each_changed_module_is_told_with_its_size_and_each_other_as_untouched(
    served: httpx.Client, tiny_bert: Path, folders: dict[str, Path]
) -> None:
    answer = served.get("/adapters/b/changes")
    told = answer.json()
    assert told["version"] == served.get("/adapters/b").json()["version"]
    assert answer.headers["etag"] == f'"{told["version"]}"'
    sizes = {path: size for path, size in told["changes"].items() if size is not None}
    assert sizes == pytest.approx(merged_changes(tiny_bert, folders["b"]), rel=1e-4)
    assert told["changes"]["embeddings.word_embeddings"] is None
    assert served.get("/adapters/b/changes").json() == told


def test_a_dry_run_tells_the_changes_before_anything_is_served(
    served: httpx.Client, folders: dict[str, Path]
) -> None:
    dry = served.put("/adapters/new?dry_run=true", files=files_of(folders["b"])).json()
    assert dry["changes"] == served.get("/adapters/b/changes").json()["changes"]
    assert "changes" not in served.put("/adapters/b", files=files_of(folders["b"])).json()


def test_a_merged_adapter_changes_what_it_changed_before(served: httpx.Client) -> None:
    before = served.get("/adapters/a/changes").json()
    served.post("/adapters/a/merge").raise_for_status()
    assert served.get("/adapters/a/changes").json() == before


def test_the_modules_are_named_for_who_asks_and_for_no_other(served: httpx.Client) -> None:
    assert "modules" not in served.get("/info").json()
    modules = served.get("/info?modules=true").json()["modules"]
    assert modules == list(served.get("/adapters/a/changes").json()["changes"])


def test_changes_of_a_name_that_is_not_there_are_a_404(served: httpx.Client) -> None:
    assert served.get("/adapters/nobody/changes").status_code == 404
