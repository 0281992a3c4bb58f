"""Labels, activations and tasks: what transformers' pipeline answers, or a refusal that says what
to say.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

from app.catalog.store import content_version
from tests.conftest import Serve
from tests.kinds import NAMES, make_kind, randomise
from tests.oracles import files_of, put
from tests.tiny import CONFIGS, save_tiny_base, tiny_tokenizer

TEXTS = ["my card", "how is the film?", "lost money, bad"]
KINDS: dict[str, Any] = {
    "classify": (AutoModelForSequenceClassification, "text-classification"),
    "tokens": (AutoModelForTokenClassification, "token-classification"),
}


def save_classifier(arch: str, folder: Path, labels: list[str], task: str, **config: Any) -> Path:
    """A random classifier of this architecture, as a fine-tuned base is saved."""
    torch.manual_seed(len(labels))
    made = CONFIGS[arch]()
    made.id2label = dict(enumerate(labels))
    made.label2id = {name: i for i, name in enumerate(labels)}
    for name, value in config.items():
        setattr(made, name, value)
    model = KINDS[task][0].from_config(made)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_headless(arch: str, base: Path, folder: Path, task: str) -> Path:
    """An adapter of the encoder alone, trained on the base with its own head, saved by PEFT."""
    names = NAMES[arch]
    tuned = get_peft_model(
        KINDS[task][0].from_pretrained(base), LoraConfig(r=4, target_modules=[names.q, names.v])
    )
    randomise(tuned)
    tuned.save_pretrained(folder)
    return folder


def piped(base: Path, folder: Path, task: str, **more: Any) -> Any:
    """transformers' pipeline over PEFT's model of base and adapter. more: its config's fields."""
    model = KINDS[task][0].from_pretrained(base, **more)
    tuned = PeftModel.from_pretrained(model, folder).merge_and_unload().eval()
    tokenizer = AutoTokenizer.from_pretrained(base, model_max_length=70)
    return pipeline(KINDS[task][1], tuned, tokenizer=tokenizer)


def same_labels(mine: list[Any], theirs: list[Any]) -> None:
    assert [[e["label"] for e in row] for row in mine] == [
        [e["label"] for e in row] for row in theirs
    ]
    for row, wanted in zip(mine, theirs, strict=True):
        assert [e["score"] for e in row] == pytest.approx([e["score"] for e in wanted], abs=1e-5)


@pytest.mark.parametrize(
    ("arch", "labels", "problem"),
    [
        ("bert", ["toxic", "threat", "insult"], "multi_label_classification"),
        ("bert", ["no", "yes"], "single_label_classification"),
        ("bert", ["no", "yes", "so"], None),
        ("bert", ["relevance"], None),
        ("bert", ["stars"], "regression"),
        ("roberta", ["toxic", "threat"], "multi_label_classification"),
        ("distilbert", ["toxic", "threat"], "multi_label_classification"),
        ("modernbert", ["a", "b"], "multi_label_classification"),
    ],
)
def test_a_classifier_as_base_answers_as_the_pipeline(
    serve: Serve, tmp_path: Path, arch: str, labels: list[str], problem: str | None
) -> None:
    base = save_classifier(arch, tmp_path / "base", labels, "classify", problem_type=problem)
    folder = save_headless(arch, base, tmp_path / "a", "classify")
    client = serve(model=str(base)).client
    answer = put(client, "a", folder)
    assert (answer["task"], answer["labels"]) == ("classify", labels)
    assert any("sigmoid" in w for w in answer["warnings"]) == (len(labels) == 1 and not problem)
    got = client.post("/classify?adapter=a", json={"inputs": TEXTS}).json()
    same_labels(got, piped(base, folder, "classify")(TEXTS, top_k=None))
    config = folder / "adapter_config.json"
    said = json.loads(config.read_text()) | {"auto_mapping": None}
    config.write_text(json.dumps(said))
    untold = put(client, "b", folder)
    assert any("the base is one" in w for w in untold["warnings"])
    assert client.post("/classify?adapter=b", json={"inputs": TEXTS}).json() == got
    assert put(client, "b", folder, task="embed")["task"] == "embed"


@pytest.mark.parametrize("arch", ["bert", "roberta", "distilbert"])
def test_a_word_classifier_as_base_answers_as_the_pipeline(
    serve: Serve, tmp_path: Path, arch: str
) -> None:
    base = save_classifier(arch, tmp_path / "base", ["B-ORG", "B-PER", "B-LOC"], "tokens")
    folder = save_headless(arch, base, tmp_path / "a", "tokens")
    client = serve(model=str(base)).client
    assert put(client, "a", folder)["labels"] == ["B-ORG", "B-PER", "B-LOC"]
    got = client.post("/classify?adapter=a", json={"inputs": TEXTS}).json()
    theirs = piped(base, folder, "tokens")(TEXTS, aggregation_strategy="simple")
    assert sum(map(len, got)) > 0
    for mine, wanted in zip(got, theirs, strict=True):
        assert [e["word"] for e in mine] == [e["word"] for e in wanted]
        assert [e["entity_group"] for e in mine] == [e["entity_group"] for e in wanted]
        scores = [float(e["score"]) for e in wanted]
        assert [e["score"] for e in mine] == pytest.approx(scores, abs=1e-5)


def test_a_head_of_ones_own_has_the_bases_labels_where_it_has_as_many(
    serve: Serve, tiny_bert: Path, tmp_path: Path
) -> None:
    """As AutoModel…from_pretrained(base) has them, and with num_labels of another number none."""
    base = save_classifier(
        "bert", tmp_path / "base", ["x", "y", "z"], "classify",
        problem_type="multi_label_classification",
    )  # fmt: skip
    client = serve(model=str(base)).client
    for count, labels in ((3, ["x", "y", "z"]), (2, ["LABEL_0", "LABEL_1"])):
        folder = make_kind(
            "plain", "bert", tiny_bert, tmp_path / str(count), task="SEQ_CLS", labels=count
        )
        answer = put(client, "a", folder)
        assert answer["labels"] == labels
        assert any("the base's own" in w for w in answer["warnings"]) == (count == 3)
        assert any("nothing names its labels" in w for w in answer["warnings"]) == (count == 2)
        assert any("the base's problem_type" in w for w in answer["warnings"])
        got = client.post("/classify?adapter=a", json={"inputs": TEXTS}).json()
        theirs = piped(base, folder, "classify", num_labels=count, ignore_mismatched_sizes=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same_labels(got, theirs(TEXTS, top_k=None))
    folder = make_kind("plain", "bert", tiny_bert, tmp_path / "said", task="SEQ_CLS", labels=3)
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "a", "1": "b", "2": "c"}}))
    assert put(client, "a", folder)["labels"] == ["a", "b", "c"]
    assert put(client, "a", folder, labels="k,l,m")["labels"] == ["k", "l", "m"]


@pytest.fixture
def unnamed(tiny_bert: Path, tmp_path: Path) -> Path:
    return make_kind("plain", "bert", tiny_bert, tmp_path / "u", task="SEQ_CLS", labels=2)


def test_labels_from_nowhere_are_warned_of_and_given_later(
    client: httpx.Client, unnamed: Path
) -> None:
    first = put(client, "later", unnamed)
    assert any("nothing names its labels" in w for w in first["warnings"])
    before = client.post("/classify?adapter=later", json={"inputs": TEXTS}).json()
    body = {"labels": ["neg, or worse", "pos"]}
    stale = {"If-Match": '"0000"'}
    assert client.put("/adapters/later/labels", json=body, headers=stale).status_code == 412
    good = {"If-Match": f'"{first["version"]}"'}
    named = client.put("/adapters/later/labels", json=body, headers=good)
    assert named.status_code == 200, named.text
    assert named.json()["labels"] == body["labels"]
    assert not any("nothing names" in w for w in named.json()["warnings"])
    assert named.headers["etag"] == f'"{named.json()["version"]}"' != f'"{first["version"]}"'
    assert client.put("/adapters/later/labels", json=body).json()["unchanged"] is True
    after = client.post("/classify?adapter=later", json={"inputs": TEXTS}).json()
    renamed = dict(zip(["LABEL_0", "LABEL_1"], body["labels"], strict=True))
    assert after == [[e | {"label": renamed[e["label"]]} for e in row] for row in before]
    history = client.get("/adapters/later/versions").json()
    assert [e["version"] for e in history] == [first["version"], named.json()["version"]]
    folder = client.get("/adapters/later/files").content
    assert client.put("/adapters/again", content=folder).json()["labels"] == body["labels"]
    assert client.post("/adapters/later/rollback").json()["labels"] == ["LABEL_0", "LABEL_1"]


def test_a_problem_type_given_with_the_labels_changes_the_scores(
    client: httpx.Client, unnamed: Path
) -> None:
    put(client, "kind", unnamed)
    body = {"labels": ["a", "b"], "problem_type": "multi_label_classification"}
    assert client.put("/adapters/kind/labels", json=body).status_code == 200
    raw = client.post("/classify?adapter=kind", json={"inputs": "x", "raw_scores": True}).json()
    got = client.post("/classify?adapter=kind", json={"inputs": "x"}).json()
    wanted = torch.tensor([e["score"] for e in raw]).sigmoid().tolist()
    assert [e["score"] for e in got] == pytest.approx(wanted, abs=1e-5)


def test_labels_alone_leave_the_scores_what_they_were(client: httpx.Client, unnamed: Path) -> None:
    put(client, "kind", unnamed, problem_type="multi_label_classification")
    before = client.post("/classify?adapter=kind", json={"inputs": "x"}).json()
    assert client.put("/adapters/kind/labels", json={"labels": ["a", "b"]}).status_code == 200
    after = client.post("/classify?adapter=kind", json={"inputs": "x"}).json()
    assert [e["score"] for e in after] == [e["score"] for e in before]


def test_damaged_files_get_no_new_labels(serve: Serve, tiny_bert: Path, unnamed: Path) -> None:
    server = serve(model=str(tiny_bert))
    version = put(server.client, "x", unnamed)["version"]
    store = server.app.state.serving.installer.store.root
    weights = store / "versions" / version / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    answer = server.client.put("/adapters/x/labels", json={"labels": ["a", "b"]})
    assert (answer.status_code, answer.json()["error_type"]) == (503, "store_unavailable")
    assert server.client.get("/adapters/x").json()["version"] == version


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("kept", {"labels": ["a"]}, 422),
        ("kept", {"labels": ["a", "a"]}, 422),
        ("kept", {"labels": []}, 422),
        ("kept", {"labels": ["a", ""]}, 422),
        ("kept", {"labels": ["a", 5]}, 422),
        ("kept", {"labels": ["a", "b"], "problem_type": "odd"}, 422),
        ("kept", {"labels": ["a", "b"], "more": 1}, 422),
        ("nobody", {"labels": ["a", "b"]}, 404),
    ],
)
def test_labels_that_do_not_fit_are_refused_and_the_name_stays(
    client: httpx.Client, unnamed: Path, name: str, body: Any, status: int
) -> None:
    before = put(client, "kept", unnamed)["version"]
    assert client.put(f"/adapters/{name}/labels", json=body).status_code == status
    assert client.get("/adapters/kept").json()["version"] == before


def test_labels_are_given_by_admins_alone(serve: Serve, tiny_bert: Path, unnamed: Path) -> None:
    client = serve(model=str(tiny_bert), api_keys="reader", admin_keys="boss").client
    boss, reader = ({"Authorization": f"Bearer {key}"} for key in ("boss", "reader"))
    client.put("/adapters/a", files=files_of(unnamed), headers=boss)
    body = {"labels": ["a", "b"]}
    assert client.put("/adapters/a/labels", json=body, headers=reader).status_code == 403
    assert client.put("/adapters/a/labels", json=body).status_code == 401
    assert client.put("/adapters/a/labels", json=body, headers=boss).status_code == 200
    history = client.get("/adapters/a/versions", headers=reader).json()
    assert [e["by"] for e in history] == ["admin-key-1", "admin-key-1"]


def added_by_transformers(
    arch: str, base: Path, folder: Path, task: str, targets: list[str] | None = None
) -> Path:
    """What transformers' own add_adapter and save_pretrained write: PEFT's file, no task, no
    class.
    """
    names = NAMES[arch]
    model = KINDS[task][0].from_pretrained(base, num_labels=3)
    texts_alone = {"pre_classifier"} if task == "tokens" else set()
    whole = [module for module in names.head if module not in texts_alone]
    tuned = get_peft_model(
        model, LoraConfig(r=4, target_modules=targets or [names.q, names.v], modules_to_save=whole)
    )
    randomise(tuned)
    tuned.save_pretrained(folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_mapping": None}))
    return folder


@pytest.mark.parametrize(
    "arch", ["bert", "albert", "modernbert", "roberta", "electra", "distilbert"]
)
def test_a_word_classifier_that_does_not_say_so_is_never_one_of_texts(
    serve: Serve, tmp_path: Path, arch: str
) -> None:
    base = save_tiny_base(arch, tmp_path / "base")
    words, texts = (
        added_by_transformers(arch, base, tmp_path / task, task) for task in ("tokens", "classify")
    )
    client = serve(model=str(base)).client
    if arch in ("bert", "albert", "modernbert"):
        for folder in (words, texts):
            refused = client.put("/adapters/a", files=files_of(folder))
            assert refused.status_code == 422
            assert "?task=classify or ?task=tokens" in refused.json()["error"]
            assert refused.json()["problems"][0]["tensor"].endswith("classifier.weight")
    else:
        assert put(client, "a", words)["task"] == "tokens"
        assert put(client, "b", texts)["task"] == "classify"
    assert put(client, "a", words, task="tokens")["task"] == "tokens"
    got = client.post("/classify?adapter=a", json={"inputs": TEXTS}).json()
    theirs = piped(base, words, "tokens", num_labels=3)(TEXTS, aggregation_strategy="simple")
    for mine, wanted in zip(got, theirs, strict=True):
        assert [(e["word"], e["entity_group"]) for e in mine] == [
            (e["word"], e["entity_group"]) for e in wanted
        ]
    assert put(client, "b", texts, task="classify")["task"] == "classify"
    got = client.post("/classify?adapter=b", json={"inputs": TEXTS}).json()
    same_labels(got, piped(base, texts, "classify", num_labels=3)(TEXTS, top_k=None))


@pytest.mark.parametrize(
    ("change", "more", "task"),
    [
        ({}, {"config.json": {"architectures": ["BertForTokenClassification"]}}, "tokens"),
        ({}, {"config.json": {"problem_type": "single_label_classification"}}, "classify"),
        ({}, {"config.json": {"id2label": {"0": "O", "1": "B-PER", "2": "I-PER"}}}, "tokens"),
        ({"bias": "all"}, {}, None),
        ({"task_type": "TOKEN_CLS"}, {}, "tokens"),
    ],
)
def test_what_else_the_files_say_tells_a_head_for_words(
    client: httpx.Client, tiny_bert: Path, tmp_path: Path, change: Any, more: Any, task: str | None
) -> None:
    folder = added_by_transformers("bert", tiny_bert, tmp_path / "a", "tokens")
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    for name, content in more.items():
        (folder / name).write_text(json.dumps(content))
    answer = client.put("/adapters/evident", files=files_of(folder)).json()
    assert answer.get("task") == task, answer


def test_a_pooler_that_was_trained_or_not_tells_texts_from_words(
    client: httpx.Client, tiny_bert: Path, tmp_path: Path
) -> None:
    """Every BERT for texts has a pooler, which "dense" targets; none for words has."""
    for task in ("classify", "tokens"):
        folder = added_by_transformers("bert", tiny_bert, tmp_path / task, task, ["query", "dense"])
        answer = put(client, "told", folder)
        assert answer["task"] == task
        assert any(w.startswith("read as") for w in answer["warnings"])


def test_a_base_without_a_pooler_can_only_label_words(
    serve: Serve, tiny_bert: Path, tmp_path: Path
) -> None:
    base = save_tiny_base("bert", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    (base / "model.safetensors").write_bytes(save(kept, {"format": "pt"}))
    folder = added_by_transformers("bert", base, tmp_path / "a", "tokens")
    answer = put(serve(model=str(base)).client, "a", folder)
    assert answer["task"] == "tokens"
    assert any("has a pooler" in w for w in answer["warnings"])


def test_a_stored_head_that_would_be_refused_today_stays_what_it_was(
    serve: Serve, tiny_bert: Path, tmp_path: Path
) -> None:
    """A server of before read it as one for texts, and its clients know it so."""
    folder = added_by_transformers("bert", tiny_bert, tmp_path / "a", "classify")
    server = serve(model=str(tiny_bert))
    digest = put(server.client, "a", folder, task="classify")["version"]
    wanted = server.post("/classify?adapter=a", inputs=TEXTS)
    store = server.app.state.serving.installer.store
    server.stop()
    bare = content_version(store.folder(digest), {})
    (store.root / "versions" / digest).rename(store.root / "versions" / bare)
    (store.root / "versions" / bare / "options.json").write_text("{}")
    report = store.report(bare)
    (store.root / "versions" / bare / "report.json").write_text(json.dumps(report | {"format": 2}))
    pointer = store.look("a")
    history = tuple(replace(entry, version=bare) for entry in pointer.history)
    store.move(pointer, replace(pointer, version=bare, history=history))
    again = serve(model=str(tiny_bert))
    assert again.post("/classify?adapter=a", inputs=TEXTS) == wanted
