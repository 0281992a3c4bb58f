"""Half precision by itself: float16, and bfloat16 where float16 overflows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.model.base_files import BaseFiles, find_base
from app.model.load_encoder import NotFinite, load_encoder, load_in_half
from tests.tiny import save_tiny_base

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def base(folder: Path, factor: float) -> BaseFiles:
    """factor: of the first layer's feed-forward weights."""
    save_tiny_base("bert", folder)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if "layer.0.intermediate.dense.weight" in name:
            weights[name] *= factor
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return find_base(str(folder), None)


def test_a_base_that_float16_holds_is_served_in_it(tmp_path: Path) -> None:
    assert load_in_half(base(tmp_path, 1), DEVICE).dtype == torch.float16


def test_one_that_overflows_is_served_in_bfloat16_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = base(tmp_path, 1e6)
    assert load_in_half(files, DEVICE).dtype == torch.bfloat16
    assert "float16 gives numbers that are not finite" in caplog.text


def test_where_float16_was_asked_for_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match="set another DTYPE"):
        load_encoder(base(tmp_path, 1e6), DEVICE, torch.float16)
