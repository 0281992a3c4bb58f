"""Every served architecture, tiny and random, equals transformers and PEFT over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from app.assemble import StartRefused
from tests.conftest import Serve
from tests.oracles import FP32, make_adapter, peft_embeddings, plain_embeddings, put
from tests.tiny import CONFIGS, save_tiny_base

LATER = ["jina_embeddings_v3", "nomic_bert", "gte", "xlm-roberta-xl"]
TEXTS = [
    "my card is lost",
    "good",
    "how is the film? the film is good, my love.",
    "where is the money " * 9,
]


@pytest.mark.parametrize("kind", CONFIGS)
def test_plain_and_adapted_equal_the_oracles(serve: Serve, tmp_path: Path, kind: str) -> None:
    base = save_tiny_base(kind, tmp_path / kind)
    server = serve(model=str(base))
    client = server.client
    info = client.get("/info").json()
    length = info["max_input_length"]
    body = {"inputs": TEXTS}
    assert_close(
        torch.tensor(client.post("/embed", json=body).json()),
        plain_embeddings(base, TEXTS, length),
        **FP32,
    )
    adapter = make_adapter(base, tmp_path / "a", 1, target_modules="all-linear", scale=2)
    report = put(client, "a", adapter)
    assert sum(report["targets"].values()) == info["linears"]
    wanted = peft_embeddings(base, adapter, TEXTS, length)
    for step in ("merge", "unmerge"):
        got = torch.tensor(client.post("/embed?adapter=a", json=body).json())
        assert_close(got, wanted, **FP32)
        client.post(f"/adapters/a/{step}")


@pytest.mark.parametrize("kind", LATER)
def test_a_text_alone_and_among_others_of_every_length_is_the_same(
    serve: Serve, tmp_path: Path, kind: str
) -> None:
    """Positions, rotary ones too, begin anew with each text, and none sees its neighbours."""
    base = save_tiny_base(kind, tmp_path / kind)
    client = serve(model=str(base)).client
    put(client, "a", make_adapter(base, tmp_path / "a", 1, target_modules="all-linear", scale=2))
    texts = ["the film is good " * (1 + i % 17) for i in range(60)]
    names = [(None, "a", "base")[i % 3] for i in range(60)]
    together = client.post("/embed", json={"inputs": texts, "adapters": names}).json()
    alone = [
        client.post("/embed", json={"inputs": [text], "adapters": [name]}).json()[0]
        for text, name in zip(texts, names, strict=True)
    ]
    assert together == alone
    plain = plain_embeddings(base, texts[::3], 80 - 2 * (kind == "xlm-roberta-xl"))
    assert_close(torch.tensor(together[::3]), plain, **FP32)


def test_a_gte_without_token_types_is_served(serve: Serve, tmp_path: Path) -> None:
    base = save_tiny_base("gte", tmp_path / "gte", type_vocab_size=0)
    got = torch.tensor(serve(model=str(base)).post("/embed", inputs=TEXTS))
    assert_close(got, plain_embeddings(base, TEXTS, 80), **FP32)


def test_heads_of_its_own_width_are_served(serve: Serve, tmp_path: Path) -> None:
    base = save_tiny_base("nomic_bert", tmp_path / "base", head_dim=12)
    got = torch.tensor(serve(model=str(base)).post("/embed", inputs=TEXTS))
    assert_close(got, plain_embeddings(base, TEXTS, 80), **FP32)


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", *LATER]
)
def test_a_padding_token_inside_a_text_stands_where_transformers_has_it(
    serve: Serve, tmp_path: Path, kind: str
) -> None:
    """RoBERTa's kind count their positions without it."""
    base = save_tiny_base(kind, tmp_path / kind)
    texts = ["the [PAD] card is lost", "[PAD]", "good [PAD] [PAD] film"]
    got = torch.tensor(serve(model=str(base)).post("/embed", inputs=texts))
    assert_close(got, plain_embeddings(base, texts, 70), **FP32)


@pytest.mark.parametrize("kind", ["deberta-v2", "mpnet", "gpt2"])
def test_a_base_that_would_be_served_wrong_is_refused_at_start(
    serve: Serve, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(StartRefused, match="cannot be served right"):
        serve(model=str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "has relative_key positions"),
        ("bert", {"position_embedding_type": "rotary"}, "has rotary positions"),
        ("gte", {"position_embedding_type": "absolute"}, "has absolute positions"),
        ("gte", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "longest text"),
        (
            "modernbert",
            {"rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}},
            "longest text",
        ),
    ],
)
def test_positions_that_would_be_computed_wrong_are_refused(
    serve: Serve, tmp_path: Path, kind: str, fields: dict[str, Any], told: str
) -> None:
    base = save_tiny_base(kind, tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | fields
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(StartRefused, match=told):
        serve(model=str(base))


def test_a_base_without_its_weights_or_folder_is_refused(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="does not exist"):
        serve(model="./nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(StartRefused, match="cannot be loaded"):
        serve(model=str(tmp_path))


def test_sentence_transformers_files_say_how_to_pool(serve: Serve, tmp_path: Path) -> None:
    base = save_tiny_base("bert", tmp_path / "st")
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    (base / "modules.json").write_text(json.dumps(modules))
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (base / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    prompts = {"prompts": {"query": "find: "}, "default_prompt_name": None}
    (base / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    client = serve(model=str(base)).client
    info = client.get("/info").json()
    assert (info["pooling"], info["normalize"], info["max_input_length"]) == ("cls", False, 12)
    named = client.post("/embed", json={"inputs": "card", "prompt_name": "query"}).json()
    given = client.post("/embed", json={"inputs": "card", "prompt": "find: "}).json()
    whole = client.post("/embed", json={"inputs": "find: card"}).json()
    assert named == given == whole != client.post("/embed", json={"inputs": "card"}).json()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["bert", *LATER])
def test_half_precision_stays_close_to_float32(
    serve: Serve, tmp_path: Path, kind: str, dtype: str
) -> None:
    base = save_tiny_base(kind, tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "a", 1, target_modules="all-linear")
    server = serve(model=str(base), dtype=dtype)
    assert server.client.get("/info").json()["model_dtype"] == dtype
    put(server.client, "a", adapter)
    length = server.client.get("/info").json()["max_input_length"]
    wanted = peft_embeddings(base, adapter, TEXTS, length)
    for step in ("merge", "unmerge"):
        got = torch.tensor(server.post("/embed?adapter=a", inputs=TEXTS))
        assert torch.cosine_similarity(got, wanted).min() > 0.99
        server.client.post(f"/adapters/a/{step}")
    assert server.client.get("/info?verify=true").json()["base"]["intact"]


def test_a_base_without_tokenizer_or_with_damaged_weights_is_refused(
    serve: Serve, tmp_path: Path
) -> None:
    base = save_tiny_base("roberta", tmp_path / "base")
    tokenizer = (base / "tokenizer.json").read_bytes()
    (base / "tokenizer.json").unlink()
    with pytest.raises(StartRefused, match="no tokenizer"):
        serve(model=str(base))
    (base / "tokenizer.json").write_bytes(tokenizer)
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(StartRefused, match="cannot be loaded"):
        serve(model=str(base))
    weights.rename(base / "pytorch_model.bin")
    with pytest.raises(StartRefused, match=r"a \.bin is a pickle"):
        serve(model=str(base))
