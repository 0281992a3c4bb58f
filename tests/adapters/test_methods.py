"""Each method's fold against its formula, written again here in float64 with other means."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from peft.tuners.vera.model import _kaiming_init
from torch import Tensor
from torch.testing import assert_close

from app.adapters.methods.layer import Layer, Shared
from app.adapters.methods.table import METHODS
from app.adapters.methods.whole import whole_linear, whole_norm
from app.adapters.recipe import Recipe
from app.adapters.refusals import AdapterRejected, Misfit
from app.adapters.values import Dense, LoRALayer, Rows

OUT, IN, R = 12, 8, 3
RNG = torch.Generator().manual_seed(3)
Parts = dict[str, Tensor]


def draw(*shape: int) -> Tensor:
    """float64, so that the formula here sees what the fold sees."""
    return torch.randn(shape, generator=RNG, dtype=torch.float64)


W, BIAS = draw(OUT, IN).float().double(), draw(OUT).float().double()
TABLE = draw(20, IN).float().double()


@dataclass(frozen=True)
class Case:
    """One method's tensors and config, and the weight and bias that the layer is to end up with."""

    method: str
    parts: Parts
    weight: Tensor
    bias: Tensor = BIAS
    config: dict[str, Any] | None = None
    shared: Shared = Shared()  # noqa: RUF009

    @property
    def recipe(self) -> Recipe:
        config = dict(self.config or {})
        numbers = dict(METHODS[self.method].numbers) | config.pop("numbers", {})
        return Recipe(**{"kind": self.method, "configured": True, "alpha": 6.0, "rank": R,
                         "numbers": numbers} | config)  # fmt: skip


def ends_up(change: LoRALayer | Dense) -> tuple[Tensor, Tensor]:
    """The weight and bias that a change leaves, as the forward computes them (values.LoRALayer)."""
    if isinstance(change, Dense):
        assert change.bias is not None
        return change.weight.double(), change.bias.double()
    gain = torch.ones(OUT) if change.gain is None else change.gain
    shift = torch.zeros(OUT) if change.shift is None else change.shift
    weight = gain.double()[:, None] * W + change.B.double() @ change.A.double()
    return weight, gain.double() * BIAS + shift.double()


A, B = draw(R, IN), draw(OUT, R)
M, C, DIAG, NEW_BIAS = draw(OUT).abs() + 1, draw(OUT), draw(R), draw(OUT)
S = 6.0 / R


def lora(weight: Tensor, bias: Tensor = BIAS, more: Parts | None = None, **config: Any) -> Case:
    return Case("LORA", {"A": A, "B": B, **(more or {})}, weight, bias, config)


def by_rows(weight: Tensor) -> Tensor:
    """DoRA: each row as long as M says."""
    return torch.stack([m * row / math.sqrt(float(row @ row)) for m, row in zip(M, weight)])  # noqa: B905


def by_svd(weight: Tensor, places: slice) -> Tensor:
    """Some of the singular triples, added up one by one. In float32, as PEFT cuts the base."""
    U, s, Vh = torch.linalg.svd(weight.float(), full_matrices=False)
    triples = range(len(s))[places]
    return sum((s[i] * torch.outer(U[:, i], Vh[i]) for i in triples), torch.zeros(OUT, IN)).double()


def by_qr(weight: Tensor) -> Tensor:
    Q, U = torch.linalg.qr(weight.float())
    return (Q[:, :R] @ U[:R]).double()


def blocked(matrix: Tensor, blocks: int) -> Tensor:
    """BD-LoRA's A [r, in / n], whose rows come in n groups, one for each part of the input."""
    rows, columns = matrix.shape
    whole = torch.zeros(rows, columns * blocks, dtype=torch.float64)
    for i in range(rows):
        at = i * blocks // rows * columns
        whole[i, at : at + columns] = matrix[i]
    return whole


BLOCK_A = draw(4, IN // 2)
WIDE_B = draw(OUT, 4)
LORAS = {
    "lora": lora(W + S * B @ A),
    "lora, rslora": lora(W + 6 / math.sqrt(R) * B @ A, rslora=True),
    "lora, a rank of its own": lora(W + 2 * S * B @ A, alpha_pattern={"query": 12}),
    "lora, the query's scale": lora(W + 5 * B @ A, alpha=None, given_scale=5.0),
    "dora": lora(by_rows(W + S * B @ A), more={"magnitude": M}, dora=True),
    "dora, early": lora(by_rows(W + S * B @ A), more={"magnitude": M[None]}, dora=True),
    "lora_bias": lora(W + S * B @ A, BIAS + S * C, {"B.bias": C}, lora_bias=True),
    "bias lora_only": lora(W + S * B @ A, NEW_BIAS, {"bias": NEW_BIAS}),
    "pissa": lora(W - by_svd(W, slice(0, R)) + S * B @ A, init="pissa"),
    "olora": lora(W - S * by_qr(W) + S * B @ A, init="olora"),
    "kasa": lora(
        W - by_svd(W, slice(-R, None)) + S * B @ torch.diag(DIAG) @ A, more={"diag": DIAG}, truncated=True
    ),
    "bd-lora": Case(
        "LORA", {"A": BLOCK_A, "B": WIDE_B}, W + 1.5 * WIDE_B @ blocked(BLOCK_A, 2),
        config={"blocks": 2, "rank": 4},
    ),
}  # fmt: skip

E = draw(R, 1)
A1, B1, A2, B2 = draw(OUT, 1), draw(1, IN), draw(OUT, 1), draw(1, IN)
HADA = {"hada_w1_a": A1, "hada_w1_b": B1, "hada_w2_a": A2, "hada_w2_b": B2}
W1A, W1B, W2A, W2B = draw(OUT, R), draw(R, IN), draw(OUT, R), draw(R, IN)
HADA_LARGE = {"hada_w1_a": W1A, "hada_w1_b": W1B, "hada_w2_a": W2A, "hada_w2_b": W2B}
K1, K2A, K2B, K2 = draw(2, 2), draw(6, 1), draw(1, 4), draw(6, 4)


def kron(first: Tensor, second: Tensor) -> Tensor:
    rows = [torch.cat([x * second for x in row], dim=1) for row in first]
    return torch.cat(rows)


LOW_RANKS = {
    "adalora": Case(
        "ADALORA", {"A": A, "B": B, "E": E},
        W + 6 / (12 + 1e-5) * sum((e * torch.outer(B[:, i], A[i]) for i, e in enumerate(E)), 0 * W),
    ),
    "loha": Case("LOHA", HADA, W + 6 * (A1 @ B1) * (A2 @ B2), config={"rank": 1}),
    "loha, large": Case("LOHA", HADA_LARGE, W + S * (W1A @ W1B) * (W2A @ W2B)),
    "lokr": Case(
        "LOKR", {"lokr_w1": K1, "lokr_w2_a": K2A, "lokr_w2_b": K2B}, W + 6 * kron(K1, K2A @ K2B),
        config={"rank": 1},
    ),
    "lokr, whole": Case("LOKR", {"lokr_w1": K1, "lokr_w2": K2}, W + S * kron(K1, K2)),
}  # fmt: skip

OUTPUTS, INPUTS = draw(OUT, 1), draw(1, IN)
D, LB = draw(R), draw(OUT)
VA, VB = draw(R, IN + 4), draw(OUT + 4, R)
VERA = {"vera_lambda_d": D, "vera_lambda_b": LB}


def vera(a: Tensor, b: Tensor) -> Tensor:
    return W + torch.diag(LB) @ b[:OUT] @ torch.diag(D) @ a[:, :IN]


def drawn_again(key: int) -> Tensor:
    generator = torch.Generator().manual_seed(key)
    a = _kaiming_init((R, IN + 4), generator).double()
    return vera(a, _kaiming_init((OUT + 4, R), generator).double())


SPECTRUM = draw(5)


def fourier(seed: int, scaling: float) -> Tensor:
    """The inverse transform, one cosine for each frequency."""
    places = torch.randperm(OUT * IN, generator=torch.Generator().manual_seed(seed))[:5]
    y, x = torch.arange(OUT).double()[:, None], torch.arange(IN).double()[None]
    change = torch.zeros(OUT, IN, dtype=torch.float64)
    for value, place in zip(SPECTRUM, places.tolist(), strict=True):
        fy, fx = divmod(place, IN)
        change += value * torch.cos(2 * math.pi * (fy * y / OUT + fx * x / IN)) / (OUT * IN)
    return W + scaling * change


UPPER, UPPER_SHARED = draw(2, 6) * 0.1, draw(1, 6) * 0.1


def skew(upper: Tensor) -> Tensor:
    matrix = torch.zeros(4, 4, dtype=torch.float64)
    for value, (i, j) in zip(upper, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], strict=True):
        matrix[i, j], matrix[j, i] = value, -value
    return matrix


def turned(rotate: Callable[[Tensor], Tensor], upper: Tensor) -> Tensor:
    """Each half of the input turned by its own block: x -> R x, so W' = W R.T."""
    halves = [rotate(skew(u)) for u in (upper if len(upper) == 2 else upper.repeat(2, 1))]
    return torch.cat([W[:, :4] @ halves[0].T, W[:, 4:] @ halves[1].T], dim=1)


EYE = torch.eye(4, dtype=torch.float64)


def cayley(q: Tensor) -> Tensor:
    return (EYE - q) @ torch.linalg.inv(EYE + q)


def neumann(q: Tensor) -> Tensor:
    return EYE + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q


def shortened(q: Tensor) -> Tensor:
    """COFT with eps 0.1 over two blocks."""
    longest, length = 0.1 / math.sqrt(2), math.sqrt(float((q * q).sum()))
    return neumann(q if length <= longest else q * longest / length)


OTHERS = {
    "ia3, outputs": Case("IA3", {"ia3_l": OUTPUTS}, OUTPUTS * W, OUTPUTS[:, 0] * BIAS),
    "ia3, inputs": Case("IA3", {"ia3_l": INPUTS}, W * INPUTS),
    "vera": Case(
        "VERA", VERA, vera(VA, VB), shared=Shared({"vera_A": VA, "vera_B": VB}, (OUT + 4, IN + 4))
    ),
    "vera, not saved": Case(
        "VERA", VERA, drawn_again(9), config={"numbers": {"projection_prng_key": 9}},
        shared=Shared({}, (OUT + 4, IN + 4)),
    ),
    "fourierft": Case("FOURIERFT", {"fourierft_spectrum": SPECTRUM}, fourier(777, 150.0)),
    "fourierft, seed": Case(
        "FOURIERFT", {"fourierft_spectrum": SPECTRUM}, fourier(5, 20.0),
        config={"numbers": {"random_loc_seed": 5, "scaling": 20.0}},
    ),
    "oft": Case("OFT", {"oft_R": UPPER}, turned(neumann, UPPER)),
    "oft, cayley": Case(
        "OFT", {"oft_R": UPPER}, turned(cayley, UPPER),
        config={"numbers": {"use_cayley_neumann": False}},
    ),
    "oft, shared": Case(
        "OFT", {"oft_R": UPPER_SHARED}, turned(neumann, UPPER_SHARED),
        config={"numbers": {"block_share": True}},
    ),
    "oft, constrained": Case(
        "OFT", {"oft_R": UPPER}, turned(shortened, UPPER), config={"numbers": {"coft": True, "eps": 0.1}}
    ),
}  # fmt: skip
CASES = LORAS | LOW_RANKS | OTHERS


def folded(case: Case) -> LoRALayer | Dense:
    fold = METHODS[case.method].fold
    assert fold is not None
    layer = Layer("encoder.query", case.parts, W.float(), BIAS.float())
    return fold(layer, case.recipe, case.shared)[0]


@pytest.mark.parametrize("name", CASES)
def test_a_fold_is_its_formula(name: str) -> None:
    weight, bias = ends_up(folded(CASES[name]))
    assert_close(weight, CASES[name].weight, rtol=2e-6, atol=5e-6)
    assert_close(bias, CASES[name].bias, rtol=2e-6, atol=5e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_trained_bias_takes_the_bases_place(name: str) -> None:
    case = CASES[name]
    case = replace(case, parts=case.parts | {"bias": NEW_BIAS})
    wanted = {"lora_bias": NEW_BIAS + S * C, "ia3, outputs": OUTPUTS[:, 0] * NEW_BIAS}
    assert_close(ends_up(folded(case))[1], wanted.get(name, NEW_BIAS), rtol=2e-6, atol=5e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_fold_without_one_of_its_tensors_is_refused(name: str) -> None:
    case = CASES[name]
    for part in case.parts:
        if part in ("bias", "ia3_l", "lokr_w2_a"):
            continue
        rest = {p: tensor for p, tensor in case.parts.items() if p != part}
        with pytest.raises((Misfit, KeyError)):
            folded(replace(case, parts=rest))


def test_what_overflows_float32_once_scaled_is_refused() -> None:
    with pytest.raises(Misfit, match="not finite"):
        folded(lora(W, alpha=1e39))


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].method not in ("IA3", "OFT")])
def test_another_rank_than_the_configs_is_refused(name: str) -> None:
    case = CASES[name]
    if case.method in ("ADALORA", "FOURIERFT"):
        numbers = {"init_r": 2} if case.method == "ADALORA" else {}
        parts = case.parts if numbers else {"fourierft_spectrum": draw(OUT * IN + 1)}
        case = replace(case, parts=parts, config={"numbers": numbers})
    elif name == "lokr, whole":
        case = replace(case, config={"rank": 1})  # PEFT would look for two matrices
    else:
        case = replace(case, config={**(case.config or {}), "rank": 2})
    with pytest.raises(Misfit):
        folded(case)


def test_lora_without_any_alpha_is_refused_as_a_whole() -> None:
    with pytest.raises(AdapterRejected, match="alpha"):
        folded(lora(W, alpha=None))


@pytest.mark.parametrize(
    ("more", "config", "told"),
    [
        ({"magnitude": M}, {}, "use_dora is off"),
        ({}, {"dora": True}, "use_dora is on"),
        ({"B.bias": C}, {}, "lora_bias is off"),
        ({}, {"truncated": True}, "kasa_config is on"),
        ({"diag": DIAG}, {"configured": False}, "adapter_config.json is needed"),
    ],
)
def test_a_switch_and_its_tensor_come_together(
    more: Parts, config: dict[str, Any], told: str
) -> None:
    with pytest.raises(Misfit, match=told):
        folded(lora(W, more=more, **config))


EA, EB, EM = draw(R, 20), draw(IN, R), draw(IN).abs() + 1


def rows_of(change: Rows) -> Tensor:
    """The table that the change leaves, row by row."""
    table = TABLE if change.table is None else change.table.double()
    if change.gain is not None:
        table = table * change.gain.double()
    if change.A is not None and change.B is not None:
        table = table + change.A.double() @ change.B.double().T
    for token, slot in enumerate([] if change.slot is None else change.slot.tolist()):
        if slot >= 0 and change.rows is not None:
            table = table.index_copy(
                0, torch.tensor([token]), change.rows[slot : slot + 1].double()
            )
    return table


def embedding(method: str, parts: Parts, **config: Any) -> Tensor:
    fold = METHODS[method].fold_rows
    assert fold is not None
    recipe = Recipe(kind=method, configured=True, alpha=6.0, rank=R, **config)
    return rows_of(fold(Layer("word_embeddings", parts, TABLE.float(), None), recipe)[0])


def test_lora_on_an_embedding_is_its_formula() -> None:
    adapted = TABLE + S * (EB @ EA).T
    pair = {"embedding_A": EA, "embedding_B": EB}
    assert_close(embedding("LORA", pair), adapted, rtol=2e-6, atol=5e-6)
    by_columns = EM * adapted / (adapted * adapted).sum(0).sqrt()
    dora = embedding("LORA", {**pair, "magnitude": EM}, dora=True)
    assert_close(dora, by_columns, rtol=2e-6, atol=5e-6)


def test_trained_rows_stand_at_their_token_ids() -> None:
    rows, wanted = draw(3, IN), TABLE.clone()
    for row, token in enumerate((5, 0, 19)):
        wanted[token] = rows[row]
    assert_close(embedding("TRAINABLE_TOKENS", {"tokens": rows}, tokens=(5, 0, 19)), wanted, rtol=2e-6, atol=1e-6)  # fmt: skip
    for tokens in (None, (5, 5, 1), (1, 2, 20), (1, 2), {"position": (5, 0, 19)}):
        with pytest.raises(Misfit):
            embedding("TRAINABLE_TOKENS", {"tokens": rows}, tokens=tokens)


def test_a_layer_given_whole_is_the_files() -> None:
    weight = draw(OUT, IN)
    layer = Layer("dense", {"weight": weight, "bias": NEW_BIAS}, W.float(), BIAS.float())
    assert_close(ends_up(whole_linear(layer))[0], weight, rtol=2e-6, atol=1e-6)
    only_bias = whole_linear(replace(layer, parts={"bias": NEW_BIAS}))
    assert_close(ends_up(only_bias), (W, NEW_BIAS), rtol=2e-6, atol=1e-6)
    for parts, bias in (({"weight": weight}, BIAS), ({"bias": NEW_BIAS}, None)):
        with pytest.raises(Misfit):
            whole_linear(replace(layer, parts=parts, bias=bias))


def test_a_norm_given_whole_is_the_files() -> None:
    layer = Layer("LayerNorm", {"weight": M, "bias": C}, BIAS.float(), BIAS.float())
    norm = whole_norm(layer)
    assert norm.bias is not None
    assert_close((norm.weight.double(), norm.bias.double()), (M, C), rtol=2e-6, atol=1e-6)
    assert_close(whole_norm(replace(layer, parts={"bias": C})).weight, layer.weight)
    for parts, bias in (({"weight": M}, BIAS), ({"weight": M, "bias": C}, None)):
        with pytest.raises(Misfit):
            whole_norm(replace(layer, parts=parts, bias=bias))


def test_every_method_that_changes_a_layer_has_a_case_here() -> None:
    assert {case.method for case in CASES.values()} == {
        name for name, method in METHODS.items() if method.fold is not None
    }
