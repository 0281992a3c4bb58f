"""What a processor lacks is tried at start, replaced and told: each path is taken away in turn.

The stand-ins say what torch says on processors that are not here: AVX2 alone (no bfloat16), AVX-512
with it, a torch without oneDNN, aarch64 without its operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from app.assemble import StartRefused
from app.model import attention, fast_paths, kernel, kernel_attention, linear, machine
from app.model.linear import FrozenLinear
from tests.conftest import Serve
from tests.oracles import make_adapter, peft_embeddings, put

TEXTS = ["the good film", "a bad card", "the the good good film a card"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HALF = DTYPES[1:]
Take = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def tried_anew() -> Iterator[None]:
    linear.product.cache_clear()
    kernel_attention.why_not.cache_clear()
    yield
    linear.product.cache_clear()
    kernel_attention.why_not.cache_clear()


def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN packs no half precision."""
    pack = linear._packed

    def packed(weight: Tensor) -> Tensor:
        if weight.dtype != torch.float32:
            raise RuntimeError(
                "mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512bw"
            )
        return pack(weight)

    monkeypatch.setattr(linear, "_packed", packed)
    monkeypatch.setattr(linear, "_multiplies_float16", lambda: False)


def avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN multiplies bfloat16 (in float32 sums, rounded once, as the real one) and float16."""

    def multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        wide = None if bias is None else bias.double()
        return F.linear(x.double(), packed.double(), wide).to(x.dtype)

    monkeypatch.setattr(linear, "_packed", lambda weight: weight)
    monkeypatch.setattr(linear, "_multiply", multiply)
    monkeypatch.setattr(Tensor, "to_dense", lambda self: self)
    monkeypatch.setattr(linear, "_multiplies_float16", lambda: True)


def without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


def without_its_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(linear, "_packed", missing)
    monkeypatch.setattr(linear, "_multiplies_float16", lambda: False)


def with_wrong_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_multiply", lambda x, *_: x.new_zeros(len(x), 48))
    monkeypatch.setattr(linear, "_multiplies_float16", lambda: False)


WAYS: dict[str, tuple[Take, dict[torch.dtype, torch.dtype | None], str]] = {
    "avx2": (
        avx2,
        {torch.float32: torch.float32, torch.bfloat16: torch.float32, torch.float16: torch.float32},
        "float32 products of the same numbers serve",
    ),
    "avx512": (
        avx512,
        {torch.float32: torch.float32, torch.bfloat16: torch.bfloat16, torch.float16: None},
        "",
    ),
    "without oneDNN": (without_onednn, dict.fromkeys(DTYPES), "torch has no oneDNN here"),
    "aarch64": (without_its_operators, dict.fromkeys(DTYPES), "has no attribute"),
    "wrong": (with_wrong_operators, dict.fromkeys(DTYPES), "is off by"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_product_that_does_not_run_is_replaced_by_one_that_is_right(
    monkeypatch: pytest.MonkeyPatch, way: str, dtype: torch.dtype
) -> None:
    take, held, why = WAYS[way]
    take(monkeypatch)
    found = linear.product(dtype)
    assert found.dtype == held[dtype]
    if held[dtype] == dtype or not why:
        assert found.instead is None
    else:
        assert why in (found.instead or "")
        bits_may_differ = found.dtype is None
        assert (linear.BITS in (found.instead or "")) == bits_may_differ
    weight, bias, x = (torch.randn(*s).to(dtype) for s in ((48, 64), (48,), (9, 64)))
    frozen = FrozenLinear(weight, bias)
    wanted = F.linear(x.double(), weight.double(), bias.double())
    assert_close(frozen(x).double(), wanted, rtol=2e-2, atol=linear.TOLERANCE[dtype] * 40)
    assert frozen(x).dtype == dtype and frozen.intact()
    assert linear.packed_bytes(weight) == weight.numel() * (found.dtype or dtype).itemsize


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_serves_here_in_any_dtype_has_bits_that_ignore_the_batch(dtype: torch.dtype) -> None:
    """On the processor that the tests run on; where they may differ, the product says so."""
    weight, bias, x = (torch.randn(*s).to(dtype) for s in ((96, 384), (96,), (700, 384)))
    frozen, found = FrozenLinear(weight, bias), linear.product(dtype)
    whole = frozen(x)
    same = all(torch.equal(frozen(x[5 : 5 + n]), whole[5 : 5 + n]) for n in (1, 2, 3, 33, 600))
    assert same or found.dtype is None or linear.BITS in (found.instead or "")


def test_a_product_whose_bits_follow_the_batch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = linear._multiply
    monkeypatch.setattr(
        linear, "_multiply", lambda x, *rest: multiply(x, *rest) * (1 + 1e-6 * (len(x) == 3))
    )
    assert linear.product(torch.float32) == linear.Product(torch.float32, linear.BITS)


def broken_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("LLVM ERROR: unknown target\nand a trace")

    monkeypatch.setattr(kernel, "add_updates", broken)


def wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "add_updates", lambda y, *_: y.fill(0))


def broken_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("LLVM ERROR: unknown target\nand a trace")

    monkeypatch.setattr(kernel_attention, "attend", broken)


def wrong_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """One query is not a number, which no comparison notices by itself."""
    monkeypatch.setattr(kernel_attention, "attend", lambda _p, _s, out, *_: out.fill(float("nan")))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "parts",
    [
        {"updates": broken_kernel, "attention": broken_attention},
        {"updates": wrong_kernel, "attention": wrong_attention, "products": without_onednn},
    ],
)
def test_a_server_whose_paths_are_taken_away_answers_as_peft_and_says_what_is_slow(
    monkeypatch: pytest.MonkeyPatch,
    serve: Serve,
    tiny_bert: Path,
    tmp_path: Path,
    dtype: str,
    parts: dict[str, Take],
) -> None:
    adapter = make_adapter(tiny_bert, tmp_path / "a", 1, target_modules="all-linear")
    with monkeypatch.context() as taken:
        for take in parts.values():
            take(taken)
        server = serve(model=str(tiny_bert), dtype=dtype, device="cpu")
        put(server.client, "a", adapter)
        got = torch.tensor(server.post("/embed?adapter=a", inputs=TEXTS))
    wanted = peft_embeddings(tiny_bert, adapter, TEXTS)
    assert torch.cosine_similarity(got, wanted).min() > (0.99999 if dtype == "float32" else 0.99)
    slow = server.client.get("/info").json()["slow_paths"]
    told = set(parts) - ({"attention"} if dtype != "float32" else set())  # torch's in any case
    assert told <= set(slow)
    assert ("one call of torch for each length serves" in slow.get("attention", "")) == (
        "attention" in told
    )
    assert "torch multiplies adapter by adapter" in slow["updates"]
    assert "\n" not in "".join(slow.values())
    assert server.client.get("/readyz?verbose=true").json()["slow_paths"] == slow
    assert f"bert_lora_slow_paths {len(slow)}.0" in server.client.get("/metrics").text


def test_a_server_whose_paths_all_run_says_nothing(serve: Serve, tiny_bert: Path) -> None:
    client = serve(model=str(tiny_bert), device="cpu").client
    assert client.get("/info").json()["slow_paths"] == {}
    assert "bert_lora_slow_paths 0.0" in client.get("/metrics").text


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU here")
def test_a_gpu_that_torch_cannot_use_is_told_with_torchs_own_reason(
    monkeypatch: pytest.MonkeyPatch, serve: Serve, tiny_bert: Path, tmp_path: Path
) -> None:
    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020)\n")

    def slow(name: str, **more: str) -> dict[str, str]:
        server = serve(model=str(tiny_bert), store=tmp_path / name, **more)
        told: dict[str, str] = server.client.get("/info").json()["slow_paths"]
        return told

    monkeypatch.setattr(machine, "GPUS", (tmp_path / "nvidia0",))
    monkeypatch.setattr(torch.cuda, "init", too_old)
    assert "device" not in slow("without")
    (tmp_path / "nvidia0").touch()
    why = slow("with")["device"]
    assert "driver on your system is too old" in why and "\n" not in why
    assert "device" not in slow("asked for", device="cpu")
    with pytest.raises(StartRefused, match=r"sees 0 GPUs: .* is too old"):
        slow("a GPU", device="cuda")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_base_that_does_not_run_here_stops_the_start_in_one_line(
    monkeypatch: pytest.MonkeyPatch, serve: Serve, tiny_bert: Path, dtype: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("flash attention needs another processor\nand a trace")

    monkeypatch.setattr(F, "scaled_dot_product_attention", broken)
    with pytest.raises(StartRefused, match="needs another processor") as refused:
        serve(model=str(tiny_bert), dtype=dtype, device="cpu")
    assert dtype in str(refused.value) and "\n" not in str(refused.value)


def test_a_gpus_slow_ways_are_told_with_their_reasons(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a stand-in for a card: neither Triton's kernels nor varlen attention run."""
    kernel_cuda = pytest.importorskip("app.model.kernel_cuda")
    fused = pytest.importorskip("app.model.fused")
    monkeypatch.setattr(kernel_cuda, "why_not", lambda *_: "Triton does not run here (no compiler)")
    monkeypatch.setattr(
        attention, "varlen_why_not", lambda *_: "varlen attention is off by 1.0 here"
    )
    cuda = torch.device("cuda")
    found = fast_paths.try_paths((4, 8), cuda, torch.bfloat16, [(32, 32)])
    assert (found.kernels_on, found.varlen) == (None, False)
    assert set(found.slow) == {"updates", "attention"}
    assert "updates: Triton does not run here (no compiler)" in caplog.text
    monkeypatch.setattr(kernel_cuda, "why_not", lambda *_: None)
    monkeypatch.setattr(attention, "varlen_why_not", lambda *_: None)
    monkeypatch.setattr(fused, "chosen", lambda *_: (frozenset(), "Triton's product is off by 1"))
    found = fast_paths.try_paths((4, 8), cuda, torch.bfloat16, [(32, 32)])
    assert (found.kernels_on, found.fused, set(found.slow)) == (cuda, set(), {"products"})
    monkeypatch.setattr(fused, "chosen", lambda *_: (frozenset({(32, 32)}), None))
    found = fast_paths.try_paths((4, 8), cuda, torch.bfloat16, [(32, 32)])
    assert (found.kernels_on, found.varlen, found.slow) == (cuda, True, {})
    assert [found.joins(nn.Linear(32, n, device="meta")) for n in (32, 64)] == [True, False]
    assert fast_paths.try_paths((4, 8), cuda, torch.float32, [(32, 32)]).varlen
    assert not fast_paths.try_paths((4, 8), torch.device("cpu"), torch.float32, [(32, 32)]).varlen
