"""A product in int8 is whole-number arithmetic, exact and of each row alone; the base is what its
whole numbers say.
"""

from __future__ import annotations

import gc
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.testing import assert_close

from app.adapters.values import Adapter, LoRALayer, laid_out
from app.model import kernel_int8
from app.model.base_files import find_base
from app.model.delta import unmerged_layers
from app.model.encoder import Encoder
from app.model.int8 import Int8Embedding, Int8Linear, joined_in_int8, quantised
from app.model.load_encoder import load_encoder
from app.model.lora import merge_lora

CPU = torch.device("cpu")
KEY = "encoder.layer.0.attention.self.key"
SHAPES = [(1, 1, 1), (5, 7, 3), (6, 16, 2), (7, 17, 33), (100, 40, 384), (193, 96, 1536)]


@pytest.fixture(scope="module")
def encoder(tiny_bert: Path) -> Encoder:
    return load_encoder(find_base(str(tiny_bert), None), CPU, torch.int8)


def linear(out: int, inputs: int, bias: bool = True) -> Int8Linear:
    torch.manual_seed(out * inputs)
    shift = nn.Parameter(torch.randn(out), requires_grad=False) if bias else None
    return Int8Linear(*quantised(torch.randn(out, inputs)), shift)


def exact(layer: Int8Linear, x: Tensor) -> np.ndarray:
    """By the definition, in whole numbers of 64 bits; scales and shift as float32."""
    weights = layer.rows().numpy().astype(np.int64)
    most = min(2**15 - 1, (2**31 - 1) // max(1, int(np.abs(weights).sum(1).max())))
    top = x.abs().amax(1, keepdim=True).numpy()
    factor = np.where(top > 0, np.float32(most) / np.where(top > 0, top, 1), np.float32(0))
    numbers = np.rint(x.numpy() * factor.astype(np.float32)).astype(np.int64)
    sums = numbers @ weights.T
    assert np.abs(sums).max() < 2**31
    by_row = top / np.float32(most) * layer.scale.numpy()
    shift = 0 if layer.bias is None else layer.bias.numpy()
    product: np.ndarray = sums.astype(np.float32) * by_row + np.float32(shift)
    return product


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "out", "inputs"), SHAPES)
def test_a_product_is_that_of_whole_numbers_to_the_bit(
    rows: int, out: int, inputs: int, bias: bool
) -> None:
    layer, x = linear(out, inputs, bias), torch.randn(rows, inputs)
    assert kernel_int8.why_not() is None
    assert np.array_equal(layer(x).numpy(), exact(layer, x))


def test_the_largest_sum_that_there_can_be_fits() -> None:
    layer, x = Int8Linear(*quantised(torch.ones(32, 3072)), None), torch.ones(7, 3072)
    x[1] = -1
    y = layer(x)
    assert np.array_equal(y.numpy(), exact(layer, x))
    assert_close(y[0], torch.full((32,), 3072.0), rtol=1e-4, atol=0)
    assert torch.equal(y[1], -y[0])


def test_a_product_is_near_float32s() -> None:
    layer, x = linear(96, 384), torch.randn(50, 384)
    assert layer.bias is not None
    wanted = x.double() @ layer.weight.double().T + layer.bias.double()
    off = (layer(x).double() - wanted).abs().max() / wanted.abs().max()
    assert off < 1e-4  # its own weights: only the rows are rounded, to 15 bits and a sign


def test_a_weight_is_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(40, 70)
    weight[3] = 0
    rows, scale = quantised(weight)
    assert rows.dtype == torch.int8
    assert (rows.abs().amax(1)[scale > 0] == 127).all()
    off = (rows.double() * scale.double()[:, None] - weight.double()).abs()
    assert (off <= scale.double()[:, None] * (0.5 + 1e-5)).all()


def test_a_rows_bits_do_not_depend_on_the_rows_beside_it() -> None:
    layer, x = linear(96, 384), torch.randn(700, 384)
    x[250] *= 1000  # a neighbour whose numbers are large
    whole = layer(x)
    for count in (1, 2, 5, 6, 7, 33, 96, 97, 600):
        assert torch.equal(layer(x[5 : 5 + count]), whole[5 : 5 + count]), count


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_stays_so_and_harms_no_other(bad: float) -> None:
    layer, x = linear(40, 33), torch.randn(20, 33)
    whole = layer(x)
    x[7, 30] = bad
    y = layer(x)
    assert not y[7].isfinite().any()
    others = [i for i in range(20) if i != 7]
    assert torch.equal(y[others], whole[others])


def test_a_row_of_zeros_gives_the_bias() -> None:
    layer = linear(40, 33)
    assert layer.bias is not None
    assert torch.equal(layer(torch.zeros(1, 33))[0], layer.bias)


def test_leading_dimensions_are_kept() -> None:
    layer, x = linear(40, 33), torch.randn(2, 3, 33)
    assert torch.equal(layer(x), layer(x.view(6, 33)).view(2, 3, 40))


@pytest.mark.parametrize(("out", "inputs"), [(1, 1), (16, 2), (17, 3), (40, 51)])
def test_packed_weights_are_unpacked_again(out: int, inputs: int) -> None:
    weights = np.random.default_rng(0).integers(-127, 128, (out, inputs), np.int8)
    assert np.array_equal(kernel_int8.unpacked(kernel_int8.packed(weights), out, inputs), weights)


def test_where_numba_does_not_run_numpy_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x = linear(40, 33), torch.randn(20, 33)
    x[3], x[4, 0] = 0, float("nan")
    wanted = layer(x)

    def broken(*_: object) -> None:
        raise OSError("no LLVM here\nand a page of advice")

    monkeypatch.setattr(kernel_int8, "multiply", broken)
    kernel_int8.why_not.cache_clear()
    try:
        assert kernel_int8.why_not() == (
            "numba does not run here (no LLVM here), numpy sums in float64, many times slower"
        )
        assert_close(layer(x), wanted, rtol=0, atol=0, equal_nan=True)
    finally:
        kernel_int8.why_not.cache_clear()


def test_an_embeddings_rows_are_its_weights() -> None:
    table, ids = Int8Embedding(torch.randn(50, 24)), torch.tensor([[3, 49, 0, 3]])
    assert torch.equal(table(ids)[0], table.weight[ids[0]])


def test_what_an_adapter_reads_of_the_base_is_what_the_product_multiplies_by(
    encoder: Encoder,
) -> None:
    assert set(encoder.base.tensors) > {f"{path}.weight" for path in encoder.base.linears}
    for path, (out, inputs) in encoder.base.linears.items():
        weight, bias = encoder.base.weight(path), encoder.base.bias(path)
        assert weight.dtype == torch.float32 and weight.shape == (out, inputs)
        x = torch.randn(3, inputs)
        wanted = torch.nn.functional.linear(x, weight, bias)
        assert_close(encoder.wrappers[path].linear(x), wanted, rtol=1e-3, atol=1e-3)


def held_bytes(root: object) -> int:
    """Of all tensors that can be reached from there, each memory once."""
    seen, waiting, places = {id(root)}, [root], {}
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor) and not isinstance(one, FakeTensor):
            places[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        if isinstance(one, FunctionType):  # not by its globals, which lead everywhere
            referents = list(one.__closure__ or ())
        else:
            referents = gc.get_referents(one)
        for other in referents:
            if id(other) not in seen and not isinstance(other, type | ModuleType):
                seen.add(id(other))
                waiting.append(other)
    return sum(places.values())


def test_the_base_takes_a_third_of_its_memory(minilm: Path) -> None:
    plain, whole = (
        load_encoder(find_base(None, None), CPU, dtype) for dtype in (torch.float32, torch.int8)
    )
    parameters = sum(tensor.nbytes for tensor in plain.base.tensors.values())
    assert parameters / 5 < held_bytes(whole) < parameters / 3


def drawn(encoder: Encoder) -> Adapter:
    rng = torch.Generator().manual_seed(0)

    def layer(out: int, inputs: int) -> LoRALayer:
        A, B = torch.randn(4, inputs, generator=rng), torch.randn(out, 4, generator=rng)
        return LoRALayer(A, B, torch.rand(out, generator=rng), torch.randn(out, generator=rng))

    layers = {path: layer(*shape) for path, shape in encoder.base.linears.items()}
    return laid_out(Adapter(layers, "peft"), CPU, encoder.adapters_dtype)


def test_a_merged_layer_is_the_dequantised_weight_and_the_update(encoder: Encoder) -> None:
    adapter, digest = drawn(encoder), encoder.digest
    layers = unmerged_layers(adapter, list(encoder.wrappers))
    merged = merge_lora(encoder.wrappers, adapter, layers)
    for path, update in adapter.layers.items():
        weight, bias = encoder.base.weight(path).double(), encoder.base.bias(path)
        assert update.gain is not None and update.shift is not None and bias is not None
        gain, x = update.gain.double(), torch.randn(5, weight.shape[1])
        whole = gain[:, None] * weight + update.B.double() @ update.A.double()
        wanted = x.double() @ whole.T + gain * bias.double() + update.shift.double()
        assert_close(merged.own[path](x).double(), wanted, rtol=1e-4, atol=1e-4)
    assert encoder.digest_now() == digest


@pytest.mark.parametrize("part", ["packed", "scale", "bias", "_scale", "_shift"])
def test_a_number_that_changes_is_noticed(tiny_bert: Path, part: str) -> None:
    """Of a Linear, or of the product that it is joined in."""
    encoder = load_encoder(find_base(str(tiny_bert), None), CPU, torch.int8)
    assert encoder.digest_now() == encoder.digest
    of = encoder._flat.products[0].frozen if part.startswith("_") else encoder.wrappers[KEY].linear
    getattr(of, part).view(-1)[0].add_(1)
    assert encoder.digest_now() != encoder.digest


@pytest.mark.parametrize("outs", [(32, 32, 32), (16, 7, 20)])
@pytest.mark.parametrize("bias", [True, False])
def test_linears_that_are_joined_give_what_each_gives(outs: tuple[int, ...], bias: bool) -> None:
    parts, x = [linear(out, 33, bias) for out in outs], torch.randn(50, 33)
    wanted = torch.cat([part(x) for part in parts], 1)
    whole = joined_in_int8(parts)
    assert_close(whole(x), wanted, rtol=1e-6, atol=1e-5)
    assert torch.equal(torch.cat([part(x) for part in parts], 1), wanted)
    assert whole.intact()
    assert torch.equal(whole.weight, torch.cat([part.weight for part in parts]))
