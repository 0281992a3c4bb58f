"""An adapter's matrices where the base is: all in one block, each with its own numbers."""

from __future__ import annotations

import torch

from app.adapters.values import PART_BYTES, Adapter, LoRALayer, laid_out

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_each_part_is_at_its_place_with_its_own_numbers() -> None:
    layers = {
        str(i): LoRALayer(torch.randn(r, 24), torch.randn(20, r), torch.randn(20), None)
        for i, r in enumerate((1, 8, 17, 0))
    }
    placed = laid_out(Adapter(layers, "peft"), DEVICE, torch.float16)
    dtype = torch.float16 if DEVICE.type == "cuda" else torch.float32
    for path, layer in layers.items():
        own = placed.layers[path]
        assert own.gain is not None and layer.gain is not None and own.shift is None
        for got, wanted in ((own.A, layer.A), (own.B, layer.B), (own.gain, layer.gain)):
            assert got.device.type == DEVICE.type
            assert torch.equal(got.cpu(), wanted.to(dtype))
            assert got.data_ptr() % PART_BYTES == 0 or not got.numel()
    first = placed.layers["0"].A.untyped_storage().data_ptr()
    assert all(x.A.untyped_storage().data_ptr() == first for x in placed.layers.values())
