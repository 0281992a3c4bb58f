"""Any names and shapes: each tensor is used or the file is refused; every layout says the same."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.adapters.config.read_recipe import read_recipe
from app.adapters.read import read_adapter
from app.adapters.recipe import Options
from app.adapters.refusals import AdapterRejected
from app.adapters.values import Adapter
from tests.adapters.made import TINY_LINEARS, tiny_base

FIXED = settings(max_examples=100, deadline=None)


BASE = tiny_base()


def read(tensors: dict[str, Tensor]) -> Adapter:
    recipe = read_recipe({}, {}, {}, Options(alpha=16))
    return read_adapter(tensors, recipe, BASE)


pieces = st.tuples(
    st.sampled_from(["", "base_model.model.", "base_model.model.bert.", "bert.", "model.", "x."]),
    st.sampled_from(
        [*TINY_LINEARS, "classifier", "pooler.dense", "embeddings.word_embeddings",
         "encoder.layer.0.output.LayerNorm", "encoder.layer.9.output.dense", "nowhere", ""]
    ),
    st.sampled_from(
        [
            ".lora_A.weight", ".lora_B.weight", ".lora_A", ".lora_B", ".lora.A", ".lora.B", ".weight",
            ".bias", ".lora_magnitude_vector", ".base_layer.bias", ".lora_A.default.weight", "",
            ".lora_embedding_A", ".lora_embedding_B", ".lora_E", ".trainable_tokens_delta", ".ia3_l",
            ".modules_to_save.default.weight",
        ]
    ),
    st.lists(st.sampled_from([1, 2, 4, 32, 64]), min_size=0, max_size=3),
)  # fmt: skip


@FIXED
@example([("", "classifier", ".weight", [])])
@example([("", "embeddings.word_embeddings", ".lora_embedding_A", []), ("", "", ".lora_A", [])])
@given(st.lists(pieces, min_size=1, max_size=8))
def test_any_names_and_shapes_are_used_to_the_last_or_refused(
    found: list[tuple[str, str, str, list[int]]],
) -> None:
    tensors = {"".join(names): torch.ones(shape) for *names, shape in found}
    try:
        adapter = read(tensors)
    except AdapterRejected as error:
        assert error.message
        return
    assert adapter.changes_encoder or adapter.head is not None
    # whatever was left out is named, and what was used moves something: dropping it is noticed
    for name in tensors.keys() - set(adapter.ignored):
        rest = {k: v for k, v in tensors.items() if k != name}
        try:
            without = read(rest)
        except AdapterRejected:
            continue
        changed = (
            without.targets != adapter.targets or without.resident_bytes != adapter.resident_bytes
        )
        assert changed or without.head != adapter.head, name


@FIXED
@given(
    paths=st.sets(st.sampled_from(sorted(TINY_LINEARS)), min_size=1),
    rank=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 100),
    prefix=st.sampled_from(["", "bert."]),
)
def test_pefts_layout_and_the_tutorials_say_the_same(
    paths: set[str], rank: int, seed: int, prefix: str
) -> None:
    rng = torch.Generator().manual_seed(seed)
    peft, tutorial = {}, {}
    for path in sorted(paths):
        out, in_ = TINY_LINEARS[path]
        a = torch.randn(rank, in_, generator=rng)
        b = torch.randn(out, rank, generator=rng)
        peft[f"base_model.model.{prefix}{path}.lora_A.weight"] = a
        peft[f"base_model.model.{prefix}{path}.lora_B.weight"] = b
        tutorial[f"{prefix}{path}.lora.A"] = b.T.contiguous()
        tutorial[f"{prefix}{path}.lora.B"] = a.T.contiguous()
    one = read(peft)
    other = read_adapter(
        tutorial, read_recipe({}, {}, {}, Options(alpha=16, layout="tutorial")), BASE
    )
    assert one.targets == other.targets
    assert set(one.layers) == set(other.layers) == paths
    for path, lora in one.layers.items():
        wanted = (
            16
            / rank
            * peft[f"base_model.model.{prefix}{path}.lora_B.weight"]
            @ (peft[f"base_model.model.{prefix}{path}.lora_A.weight"])
        )
        for found in (lora, other.layers[path]):
            assert torch.allclose(found.B @ found.A, wanted, rtol=1e-5, atol=1e-4)
