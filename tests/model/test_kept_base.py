"""A start that finds what an earlier one has kept, against the one that has asked transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn
from torch.testing import assert_close
from transformers import AutoModel

from app.adapters.base import Base
from app.engine.tokenizer import Cut, load_tokenizer, tokenize
from app.model import call_list, kept_base, kept_files
from app.model.base_files import find_base
from app.model.base_model import SERVED
from app.model.encoder import Encoder
from app.model.load_encoder import load_encoder
from app.model.lora import insert_lora
from app.model.outline import build, outline_of
from app.model.plain_base import read_plain
from app.model.sequence import Sequence, Want
from app.model.written import Written
from tests.tiny import WORDS, save_tiny_base

CPU = torch.device("cpu")
IDS = list(range(5, 40))
# Their checkpoints' weights are laid out otherwise than transformers' modules have them.
CONVERTED = ("jina_embeddings_v3", "nomic_bert", "gte")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kept"
    monkeypatch.setattr(kept_files, "places", lambda: [folder])
    return folder


@pytest.fixture
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("transformers was asked")

    monkeypatch.setattr("app.model.base_model.load_model", fail)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Encoder:
    return load_encoder(find_base(str(folder), None), CPU, dtype)


def states(encoder: Encoder, ids: list[int] = IDS) -> torch.Tensor:
    text = Sequence(ids, [0] * len(ids), Want("states"), encoder.version)
    return encoder.run([text])[0]


def shapes(base: Base) -> object:
    told = {k: v for k, v in vars(base).items() if k not in ("tensors", "head")}
    return told, [(name, tensor.shape) for name, tensor in base.tensors.items()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("kind", [kind for kind in SERVED if kind not in CONVERTED])
def test_the_second_start_has_the_same_base_bit_for_bit(
    kind: str, dtype: torch.dtype, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = save_tiny_base(kind, tmp_path)
    first = load(folder, dtype)
    request.getfixturevalue("without_transformers")
    second = load(folder, dtype)
    assert second.digest == first.digest
    assert shapes(second.base) == shapes(first.base)
    assert [(p, w.number) for p, w in second.wrappers.items()] == [
        (p, w.number) for p, w in first.wrappers.items()
    ]
    assert (second.max_length, second.type_vocabulary) == (first.max_length, first.type_vocabulary)
    for length in (1, 2, 17, first.max_length):
        ids = [5 + i % (len(WORDS) - 5) for i in range(length)]
        assert torch.equal(states(second, ids), states(first, ids))
    every = zip(second.states(IDS).layers, first.states(IDS).layers, strict=True)
    assert all(torch.equal(a, b) for a, b in every)


@pytest.mark.parametrize("kind", CONVERTED)
def test_a_base_whose_weights_are_converted_is_not_kept(
    kind: str, tmp_path: Path, kept: Path
) -> None:
    load(save_tiny_base(kind, tmp_path))
    assert not list(kept.glob("base-*"))


def test_another_checkpoint_of_the_same_shapes_is_served_with_its_own_weights(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = save_tiny_base("bert", tmp_path)
    before = states(load(folder))
    tensors = load_file(folder / "model.safetensors")
    mine = {name: t + 0.1 * torch.randn_like(t) for name, t in tensors.items()}
    save_file(mine, folder / "model.safetensors", {"format": "pt"})
    plain = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    request.getfixturevalue("without_transformers")
    after = states(load(folder))
    with torch.inference_mode():
        wanted = plain(input_ids=torch.tensor([IDS])).last_hidden_state[0]
    assert_close(after, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.equal(after, before)


@pytest.mark.parametrize("what", ["the config", "a tensor's name"])
def test_another_base_is_not_what_was_kept(what: str, tmp_path: Path, kept: Path) -> None:
    folder = save_tiny_base("bert", tmp_path)
    load(folder)
    if what == "the config":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    else:
        tensors = load_file(folder / "model.safetensors")
        under = {f"bert.{name}": tensor for name, tensor in tensors.items()}
        save_file(under, folder / "model.safetensors", {"format": "pt"})
    plain = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    for _ in range(2):
        got = states(load(folder))
        with torch.inference_mode():
            wanted = plain(input_ids=torch.tensor([IDS])).last_hidden_state[0]
        assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert len(list(kept.glob("base-*"))) == 2


@pytest.mark.parametrize(
    "how", ["cut", "a flipped bit", "another's", "an unknown operator", "another version"]
)
def test_what_cannot_be_used_is_made_again(
    how: str, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_base("bert", tmp_path)
    before = states(load(folder))
    (path,) = kept.glob("base-*")
    good = path.read_bytes()
    body = kept_files.read(path.name)
    assert body is not None
    if how == "cut":
        path.write_bytes(good[:-100])
    elif how == "a flipped bit":
        at = good.index(body) + 8 + int.from_bytes(body[:8], "little")  # the first buffer's first
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    elif how == "another's":
        kept_files.write(path.name, save({"json": torch.zeros(3, dtype=torch.uint8)}))
    elif how == "an unknown operator":
        assert body.count(b'"aten.add.Tensor"') > 1
        kept_files.write(path.name, body.replace(b'"aten.add.Tensor"', b'"evil.add.Tensor"'))
    else:
        assert how == "another version"
        version = torch.__version__.encode()
        kept_files.write(path.name, body.replace(version, b"0" * len(version)))
    assert torch.equal(states(load(folder)), before)
    assert path.read_bytes() == good


def test_a_checkpoint_that_lacks_a_weight_is_refused_after_as_before(tmp_path: Path) -> None:
    folder = save_tiny_base("bert", tmp_path)
    load(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(Exception, match=r"lacks encoder\.layer\.1\.output\.dense\.weight"):
        load(folder)


def test_where_nothing_can_be_kept_the_base_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setattr(kept_files, "places", lambda: [blocked, blocked / "below"])
    folder = save_tiny_base("bert", tmp_path)
    assert torch.equal(states(load(folder)), states(load(folder)))


def test_a_call_that_is_no_operator_has_no_place_in_the_list() -> None:
    graph = torch.fx.Graph()
    graph.output(graph.call_function(eval, ("1",)))
    with pytest.raises(TypeError, match="is no operator of"):
        call_list.to_json(graph)
    with pytest.raises(ValueError, match="builtins is none of"):
        call_list.from_json([["call_function", "x", "builtins.eval.default", [], {}]])


def test_token_types_are_given_as_transformers_gives_them_on_the_second_start_too(
    tmp_path: Path,
) -> None:
    folder = save_tiny_base("bert", tmp_path)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    for _ in range(2):
        assert not load_tokenizer(folder, 90, 2).types


def test_the_tokenizer_is_kept_with_the_same_ids_and_read_anew_where_its_files_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_base("bert", tmp_path)
    texts = ["the good film", "how is my card?", ("love", "lost money"), "UNKNOWN \u00e9"]
    first = tokenize(load_tokenizer(folder, 90, 2), texts, Cut(20))
    with monkeypatch.context() as patched:
        patched.setattr("app.engine.tokenizer._by_transformers", lambda _: pytest.fail("asked"))
        again = load_tokenizer(folder, 90, 2)
        assert tokenize(again, texts, Cut(20)) == first
    assert again.fast.convert_ids_to_tokens(first[0].ids) == [
        "[CLS]",
        "the",
        "good",
        "film",
        "[SEP]",
    ]
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text())
    words = told["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    path.write_text(json.dumps(told))
    changed = tokenize(load_tokenizer(folder, 90, 2), texts, Cut(20))
    assert changed[0].ids[2] == first[0].ids[2] + 1


def test_a_server_that_finds_both_imports_neither_transformers_nor_torchs_compiler(
    tmp_path: Path, kept: Path
) -> None:
    folder = save_tiny_base("bert", tmp_path)
    load(folder)
    load_tokenizer(folder, 90, 2)
    code = f"""
import sys
from pathlib import Path
import app.serve
from app.model import kept_files
kept_files.places = lambda: [Path({str(kept)!r})]
from app.assemble import _base
from app.settings import Settings
_base(Settings(model={str(folder)!r}))
print([name for name in ("transformers", "torch._dynamo", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_it_is_named_by_dtype_and_device_too(tmp_path: Path) -> None:
    folder = save_tiny_base("bert", tmp_path)
    devices = [CPU, torch.device("cuda")]
    names = {
        kept_base.name_of(folder, d, on) for d in (torch.float32, torch.float16) for on in devices
    }
    assert len(names) == 4


class OwnNorm(nn.LayerNorm):
    """Computes otherwise than the class that it is derived from, for all that can be seen."""


@pytest.mark.parametrize(
    "how",
    [
        "as the files have it",
        "another value",
        "in two files",
        "in none",
        "a stored buffer",
        "a class of its own",
        "rows cut to a length",
    ],
)
def test_only_what_the_files_have_bit_for_bit_is_built_from_them(how: str, tmp_path: Path) -> None:
    norm = OwnNorm(4) if how == "a class of its own" else nn.LayerNorm(4, eps=1e-3)
    model = nn.Sequential(
        nn.Embedding(5, 4, max_norm=0.1 if how == "rows cut to a length" else None),
        norm,
        nn.Linear(4, 3, bias=False),
    )
    tensors = {name: tensor.clone() for name, tensor in model.named_parameters()}
    if how == "a stored buffer":
        model.register_buffer("steps", torch.zeros(1))
    if how == "another value":
        tensors["1.bias"][2] += 1e-7
    if how == "in none":
        del tensors["1.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    if how == "in two files":
        save_file(tensors, tmp_path / "model-2.safetensors")
    outline = outline_of(model, tmp_path, torch.float32)
    assert (outline is not None) == (how == "as the files have it")
    if outline is not None:
        ids = torch.tensor([[0, 3, 4]])
        built = build(outline, tmp_path, torch.float32)
        through = built.get_submodule("2")(built.get_submodule("1")(built.get_submodule("0")(ids)))
        assert torch.equal(through, model(ids))


def test_a_forward_that_reads_a_weight_by_itself_is_not_kept(kept: Path, tmp_path: Path) -> None:
    """Another checkpoint of the same shapes has another weight."""
    plain = read_plain(find_base(str(save_tiny_base("bert", tmp_path)), None), CPU, torch.float32)
    assert plain.outline is not None
    insert_lora(plain.model)
    written = plain.forward(80, CPU)
    (path,) = kept.glob("base-*")
    path.unlink()
    by_itself = Written(written.graph, {"weight": nn.Parameter(torch.zeros(1))})
    kept_base.keep(path.name, plain.facts, plain.outline, plain.buffers, by_itself)
    assert not path.exists()
    kept_base.keep(path.name, plain.facts, plain.outline, plain.buffers, written)
    assert path.exists()
