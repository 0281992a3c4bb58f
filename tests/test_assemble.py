"""What the settings of the device and of the dtype come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from app import assemble
from tests.conftest import Serve


@pytest.mark.parametrize(
    ("dtype", "device", "loaded"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", "half"),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cuda", torch.bfloat16),
        ("int8", "cpu", torch.int8),
    ],
)
def test_auto_is_float32_on_a_cpu_and_half_precision_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, dtype: str, device: str, loaded: object
) -> None:
    load: Callable[..., Any] = assemble._load
    monkeypatch.setattr(assemble, "load_encoder", lambda _files, _device, dtype: dtype)
    monkeypatch.setattr(assemble, "load_in_half", lambda _files, _device: "half")
    assert load(None, torch.device(device), dtype) == loaded


@pytest.fixture
def torchs_own() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures("torchs_own")
@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_what_a_gpu_multiplies_in_where_it_was_asked_for(serve: Serve, tf32: bool) -> None:
    serve(tf32=tf32)
    assert torch.backends.cuda.matmul.allow_tf32 == tf32
