"""What is remembered of the frozen layers is what the whole model computes, on every base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from app.model.base_files import find_base
from bert_lora.train.adapted import NO_HEAD, SEQUENCE, TOKENS, Sizes
from bert_lora.train.student import Item, Student
from tests.tiny import CONFIGS, save_tiny_base

TEXTS = ["how is my card", "lost money", "good film!", "where", "the bad card is my love , lost"]
# ALBERT uses one layer again and again; ELECTRA widens what its embeddings give.
LISTED = set(CONFIGS) - {"albert", "electra"}


def _items(folder: Path) -> list[Item]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [Item(tokenizer(text)["input_ids"]) for text in TEXTS]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(SEQUENCE, id="labels"),
        pytest.param(TOKENS, id="words", marks=pytest.mark.slow),
        pytest.param(NO_HEAD, id="vectors", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_remembered_states_give_the_whole_models_answers_and_gradients(
    architecture: str, kind: object, tmp_path: Path
) -> None:
    base = find_base(str(save_tiny_base(architecture, tmp_path)), None)
    torch.manual_seed(0)
    student = Student(base, kind, ["a", "b", "c"], Sizes(), torch.device("cpu"))  # type: ignore[arg-type]
    items = _items(tmp_path)
    whole = student.outputs(items)[0]
    whole.square().sum().backward()
    gradients = {n: p.grad.clone() for n, p in student.trained.items()}
    student.model.zero_grad()
    student.remember(items, [[0, 1], [2, 3, 4]], lambda _: None)
    assert student.remembers == (architecture in LISTED)
    short = student.outputs(items, range(len(items)))[0]
    for row, item in enumerate(items):
        inside = slice(len(item.ids)) if short.dim() == 3 else slice(None)
        torch.testing.assert_close(short[row][inside], whole[row][inside], rtol=1e-4, atol=1e-4)
    if short.dim() == 2:  # else what is padded has its part in the sum
        short.square().sum().backward()
        for name, p in student.trained.items():
            torch.testing.assert_close(p.grad, gradients[name], rtol=1e-3, atol=1e-3)


def test_only_the_last_half_of_the_layers_and_the_head_are_trained(tmp_path: Path) -> None:
    base = find_base(str(save_tiny_base("bert", tmp_path)), None)
    student = Student(base, SEQUENCE, ["a", "b"], Sizes(), torch.device("cpu"))
    adapted = {name.split(".lora_")[0] for name in student.trained if "lora_" in name}
    assert len(adapted) == 7  # six Linears of the second layer, and the pooler
    assert not any("layer.0" in name for name in adapted)
    assert [n for n in student.trained if "classifier" in n and "lora" not in n]


def test_too_much_to_remember_is_computed_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bert_lora.train.student.MOST_REMEMBERED", 100)
    base = find_base(str(save_tiny_base("bert", tmp_path)), None)
    student = Student(base, SEQUENCE, ["a", "b"], Sizes(), torch.device("cpu"))
    items = _items(tmp_path)
    read = student.remember(items, [list(range(len(items)))], lambda _: None)
    assert (student.remembers, read is not None and read.shape) == (False, (5, 32))
