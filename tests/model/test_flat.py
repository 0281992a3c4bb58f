"""The forward as one list of calls, against transformers' own modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModel

from app.model import kernel_attention
from app.model.base_files import BaseRefused, find_base
from app.model.base_model import SERVED
from app.model.flat import flatten
from app.model.linears import Linears
from app.model.load_encoder import load_encoder
from app.model.lora import insert_lora
from app.model.sequence import Sequence, Want
from app.model.written import write_down
from tests.tiny import save_tiny_base

CPU = torch.device("cpu")


@pytest.mark.parametrize("heads", [2, 4], ids=["compiled attention", "torch's"])
@pytest.mark.parametrize("kind", SERVED)
def test_texts_of_every_length_get_transformers_own_states(
    kind: str, heads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one token, of two, and of as many as the base takes: past ModernBERT's windows."""
    monkeypatch.setattr("app.model.kept_files.places", list)
    width = {"head_dim": 32 // heads} if kind == "nomic_bert" else {}
    folder = save_tiny_base(kind, tmp_path, num_attention_heads=heads, **width)
    attended = []
    served = kernel_attention.attend
    monkeypatch.setattr(
        kernel_attention, "attend", lambda *args: (attended.append(1), served(*args))
    )
    encoder = load_encoder(find_base(str(folder), None), CPU, torch.float32)
    plain = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rng = torch.Generator().manual_seed(0)
    for length in (1, 2, 17, encoder.max_length):
        ids = torch.randint(5, encoder.vocabulary, (1, length), generator=rng)
        text = Sequence(ids[0].tolist(), [0] * length, Want("states"), encoder.version)
        with torch.inference_mode():
            wanted = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        assert_close(encoder.run([text])[0], wanted, rtol=1e-4, atol=1e-5)
    assert bool(attended) == (heads == 2)  # 16 numbers a head: as many as a vector has


def test_linears_that_read_the_same_rows_are_one_product_with_the_weights_of_all(
    tmp_path: Path,
) -> None:
    encoder = load_encoder(
        find_base(str(save_tiny_base("bert", tmp_path)), None), CPU, torch.float32
    )
    paths = [product.members.paths for product in encoder._flat.products]
    layer = "encoder.layer.0."
    three = [f"{layer}attention.self.{name}" for name in ("query", "key", "value")]
    assert tuple(three) in paths
    assert sum(len(members) for members in paths) + 1 == len(encoder.wrappers)  # and the pooler
    joined = next(p for p in encoder._flat.products if p.members.paths == tuple(three))
    weights = [encoder.wrappers[path].linear.weight for path in three]
    assert joined.frozen.weight is not None
    assert torch.equal(joined.frozen.weight, torch.cat(weights))
    start = joined.frozen.weight.data_ptr()
    assert [w.data_ptr() - start for w in weights] == [0, 32 * 32 * 4, 2 * 32 * 32 * 4]


class Fickle(nn.Module):
    """Computes otherwise for a long text."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.how = how

    def forward(self, input_ids: Tensor, position_ids: Tensor, **_: Any) -> Any:
        rows = input_ids.shape[1]
        x = self.layer(input_ids[..., None].float().expand(1, -1, 4))
        if self.how == "another operator":
            x = x.relu() if rows > 10 else x.sigmoid()
        elif self.how == "more operators" and rows > 10:
            x = x.relu()
        elif self.how == "a number":
            x = x * float(2 * rows)
        elif self.how == "a tensor":
            x = x * torch.tensor(2.0 * rows)
        elif self.how == "another operand":
            x = (x.relu(), x.sigmoid())[rows > 10] + x
        return type("Out", (), {"last_hidden_state": x, "hidden_states": (x,)})


@pytest.mark.parametrize(
    "how", ["another operator", "more operators", "a number", "a tensor", "another operand"]
)
def test_a_base_that_computes_otherwise_by_a_texts_length_is_refused(how: str) -> None:
    model = Fickle(how)
    insert_lora(model)
    with pytest.raises(BaseRefused, match="by the length of a text"):
        write_down(model, 64, CPU)


def test_the_stand_in_that_is_refused_is_served_without_its_fault() -> None:
    model = Fickle("nothing")
    linears = insert_lora(model)
    written = write_down(model, 64, CPU)
    flat = flatten(written, model, linears, lambda *_: torch.empty(0), lambda _: True)
    (product,) = flat.products
    assert isinstance(product, Linears) and product.members.paths == ("layer",)


def test_a_forward_that_cannot_be_written_down_is_a_refusal_with_the_bases_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("data-dependent expression\nand a page of advice")

    monkeypatch.setattr("torch.fx.experimental.proxy_tensor.make_fx", fail)
    monkeypatch.setattr("app.model.kept_files.places", list)
    files = find_base(str(save_tiny_base("bert", tmp_path)), None)
    with pytest.raises(BaseRefused, match=r"cannot be served: data-dependent expression$"):
        load_encoder(files, CPU, torch.float32)
