"""Weighted sums of adapters, asked for and kept: hand merges in float64 and PEFT's own functions."""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForSequenceClassification

from tests.conftest import Serve
from tests.kinds import KINDS, make_kind, peft_answers
from tests.live import LiveServer, live_server
from tests.oracles import FP32, encode, put

TEXTS = ["the card is lost", "how good is my money film?", "abc, the film! " * 10]
# What multiplies the base's output, and what replaces rows of an embedding, has no sum here.
REFUSED = {"dora", "ia3", "words whole", "tokens", "trainable tokens", "embedding, dora"}
LORA = LoraConfig(r=4, lora_alpha=6, target_modules=["query", "value"])
WIDE = LoraConfig(r=3, use_rslora=True, target_modules=["query", "output.dense"])


@pytest.fixture(scope="module")
def adapters(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """a, b: without heads. head: with three labels. dora."""
    root = tmp_path_factory.mktemp("parts")
    task = {"task": "SEQ_CLS", "labels": 3}
    return {
        "a": make_kind("a", "bert", tiny_bert, root / "a", seed=1, config=LORA),
        "b": make_kind("b", "bert", tiny_bert, root / "b", seed=2, config=WIDE),
        "head": make_kind("plain", "bert", tiny_bert, root / "head", seed=3, **task),
        "dora": make_kind("dora", "bert", tiny_bert, root / "dora", seed=4),
    }


@pytest.fixture(scope="module")
def server(
    tiny_bert: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    root = tmp_path_factory.mktemp("server")
    server = live_server(model=str(tiny_bert), store=root / "store", adapters_dir=root / "none")
    for name, folder in adapters.items():
        put(server.client, name, folder)
    yield server
    server.stop()


def ask(client: httpx.Client, adapter: str) -> Tensor:
    """Embeddings as they come out of the mean, not normalised."""
    body = {"inputs": TEXTS, "normalize": False}
    answer = client.post("/embed", params={"adapter": adapter}, json=body)
    assert answer.status_code == 200, answer.text
    return torch.tensor(answer.json())


@torch.inference_mode()
def hand_sum(base: Path, parts: Sequence[tuple[Path, float]], model: Any = None) -> nn.Module:
    """The base with every weight moved by the sum of what PEFT's merged models change, in float64."""
    summed = (model or AutoModel.from_pretrained(base)).double().eval()
    frozen = AutoModel.from_pretrained(base).double().state_dict()
    encoder = summed.bert if hasattr(summed, "bert") else summed
    weights = dict(encoder.named_parameters())
    for folder, weight in parts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder)
            changed = merged.double().merge_and_unload().state_dict()
        for name, parameter in weights.items():
            parameter.add_(weight * (changed[name] - frozen[name]))
    return summed


@torch.inference_mode()
def states(base: Path, model: nn.Module) -> Tensor:
    return torch.stack(
        [model(**encode(base, t, 80)).last_hidden_state[0].mean(0) for t in TEXTS]
    ).float()


def test_every_kind_that_adds_to_the_base_is_summed_as_by_hand_and_the_others_are_refused(
    tiny_bert: Path,
    adapters: dict[str, Path],
    server: LiveServer,
    tmp_path: Path,
    subtests: pytest.Subtests,
) -> None:
    for i, kind in enumerate(KINDS):
        folder = make_kind(kind, "bert", tiny_bert, tmp_path / str(i), seed=i)
        put(server.client, f"k{i}", folder)
        spelled = f"k{i}:0.7+a:-0.4"
        with subtests.test(kind=kind):
            answer = server.client.post(
                "/embed", params={"adapter": spelled}, json={"inputs": TEXTS, "normalize": False}
            )
            if kind in REFUSED or "dora" in kind or "tokens" in kind:
                assert answer.status_code == 422, answer.text
                assert answer.json()["error_type"] == "cannot_compose"
                assert f"k{i}" in answer.json()["error"]
                continue
            wanted = hand_sum(tiny_bert, [(folder, 0.7), (adapters["a"], -0.4)])
            got = torch.tensor(answer.json())
            assert_close(got, states(tiny_bert, wanted), **FP32)
            assert (got - ask(server.client, "base")).abs().max() > 1e-3


def test_every_way_to_choose_an_adapter_takes_a_sum(
    tiny_bert: Path, adapters: dict[str, Path], server: LiveServer
) -> None:
    client, wanted = server.client, [(adapters["a"], 0.7), (adapters["b"], 0.3)]
    summed = states(tiny_bert, hand_sum(tiny_bert, wanted))
    body: dict[str, Any] = {"inputs": TEXTS, "normalize": False}
    answers = [
        client.post("/embed?adapter=a:0.7+b:0.3", json=body),  # a + that is a space
        client.post("/embed?adapter=a:0.7%2Bb:0.3", json=body),
        client.post("/embed", json=body, headers={"X-Adapter": "a:0.7+b:0.3"}),
        client.post("/a/a:0.7+b:0.3/embed", json=body),
    ]
    for answer in answers:
        assert_close(torch.tensor(answer.json()), summed, **FP32)
    openai = {"model": "tiny-bert:a:0.7 + b:0.3", "input": TEXTS}
    data = client.post("/v1/embeddings", json=openai).json()["data"]
    unit = nn.functional.normalize(summed, dim=1)
    assert_close(torch.tensor([d["embedding"] for d in data]), unit, **FP32)
    each = ["a:0.7+b:0.3", None, "b"]
    mixed = client.post("/embed", json={**body, "adapters": each}).json()
    assert_close(torch.tensor(mixed[0]), summed[0], **FP32)
    assert torch.equal(torch.tensor(mixed[1]), ask(client, "base")[1])
    assert_close(torch.tensor(mixed[2]), ask(client, "b")[2], **FP32)
    fan_out = client.post("/embed?adapter=a:0.7+b:0.3&adapter=a", json=body).json()
    assert list(fan_out) == ["a:0.7+b:0.3", "a"]
    assert_close(torch.tensor(fan_out["a:0.7+b:0.3"]), summed, **FP32)


def test_what_the_answer_says_that_answered_asks_for_the_same_again(server: LiveServer) -> None:
    body = {"inputs": TEXTS}
    first = server.client.post("/embed?adapter=a:0.7+b:-.25", json=body)
    versions = {n: server.client.get(f"/adapters/{n}").json()["version"] for n in "ab"}
    assert first.headers["X-Adapter"] == f"a@{versions['a']}:0.7+b@{versions['b']}:-0.25"
    again = server.client.post(
        "/embed", headers={"X-Adapter": first.headers["X-Adapter"]}, json=body
    )
    assert again.json() == first.json()
    spaces = [
        server.client.post("/embed", params={"adapter": a}, json=body).headers["X-Embedding-Space"]
        for a in ("a:0.7+b:-0.25", "a:0.7+b:-0.26", "b:-0.25+a:0.7", "a", "base")
    ]
    assert spaces[0] == first.headers["X-Embedding-Space"]
    assert len(set(spaces)) == 5


def test_one_whole_adapter_is_that_adapter_and_a_part_of_one_is_a_part_of_its_change(
    tiny_bert: Path, adapters: dict[str, Path], server: LiveServer
) -> None:
    assert torch.equal(ask(server.client, "a:1"), ask(server.client, "a"))
    half = states(tiny_bert, hand_sum(tiny_bert, [(adapters["a"], 0.5)]))
    assert_close(ask(server.client, "a:0.5"), half, **FP32)
    twice = states(tiny_bert, hand_sum(tiny_bert, [(adapters["a"], 2.0)]))
    assert_close(ask(server.client, "a:2"), twice, **FP32)
    assert_close(ask(server.client, "a:0+base"), ask(server.client, "base"), **FP32)
    both = states(tiny_bert, hand_sum(tiny_bert, [(adapters["a"], 1.0), (adapters["b"], 1.0)]))
    assert_close(ask(server.client, "a+b"), both, **FP32)


@torch.inference_mode()
def test_the_head_is_that_of_the_first_that_has_one(
    tiny_bert: Path, adapters: dict[str, Path], server: LiveServer
) -> None:
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    tuned = PeftModel.from_pretrained(classifier, adapters["head"]).merge_and_unload()
    frozen = dict(AutoModel.from_pretrained(tiny_bert).named_parameters())
    for name, parameter in tuned.bert.named_parameters():  # 1.5 of its own change
        parameter.add_(0.5 * (parameter - frozen[name]))
    model = hand_sum(tiny_bert, [(adapters["a"], 0.5)], tuned)
    wanted = torch.stack([model(**encode(tiny_bert, t, 80)).logits[0] for t in TEXTS]).float()
    body = {"inputs": TEXTS, "raw_scores": True}
    answer = server.client.post("/classify?adapter=a:0.5+head:1.5", json=body).json()
    got = [{s["label"]: s["score"] for s in row} for row in answer]
    names = server.client.get("/adapters/head").json()["labels"]
    assert_close(torch.tensor([[row[n] for n in names] for row in got]), wanted, rtol=0, atol=1e-4)
    no_head = server.client.post("/classify?adapter=a:0.5+b:0.5", json=body)
    assert (no_head.status_code, no_head.json()["error_type"]) == (422, "no_head")


@pytest.mark.parametrize(
    ("spelled", "status", "kind"),
    [
        ("a:0.5+gone:0.5", 404, "adapter_not_found"),
        ("a@000000000000:0.5+b", 404, "version_not_found"),
        ("a:0.5+b:x", 422, "cannot_compose"),
        ("a:nan+b:1", 422, "cannot_compose"),
        ("a:nan", 422, "cannot_compose"),
        ("a:101", 422, "cannot_compose"),
        ("a:1000", 422, "cannot_compose"),
        ("a:1e9", 422, "cannot_compose"),
        ("a:٠.٥", 422, "cannot_compose"),
        ("a:0." + "1" * 21, 422, "cannot_compose"),
        ("a:0.5++", 422, "cannot_compose"),
        ("+", 422, "cannot_compose"),
        ("a:", 404, "adapter_not_found"),
        ("A model:7b", 404, "adapter_not_found"),
        ("+".join(["a:0.1"] * 9), 422, "cannot_compose"),
        ("a:0." + "1" * 5000, 422, "cannot_compose"),
        ("a:0.1+" * 50_000, 422, "cannot_compose"),
        ("a:0.5+dora:0.5", 422, "cannot_compose"),
    ],
)
def test_a_sum_that_is_none_is_refused_with_the_reason(
    server: LiveServer, spelled: str, status: int, kind: str
) -> None:
    body = {"inputs": "x", "adapters": [spelled]}
    answer = server.client.post("/embed", json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind), answer.text
    assert len(answer.text) < 2000


def test_one_request_may_not_fill_the_memory_with_sums(server: LiveServer) -> None:
    each = [f"a:0.{i:02}+b:0.5" for i in range(1, 10)]
    body = {"inputs": ["x"] * len(each), "adapters": each}
    answer = server.client.post("/embed", json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "cannot_compose")
    body = {"inputs": ["x"] * 8, "adapters": each[:8]}
    assert server.client.post("/embed", json=body).status_code == 200
    many = [f"tiny-bert:a@{v}" for v in ["0" * 12] * 9]
    body = {"inputs": ["x"] * 9, "adapters": [f"{name}{i}" for i, name in enumerate(many)]}
    assert server.client.post("/embed", json=body).json()["error_type"] == "version_not_found"


def test_a_key_needs_every_adapter_of_a_sum_and_each_pays(
    serve: Serve, tiny_bert: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("secret  name=part adapters=a\n")
    keyed = serve(model=str(tiny_bert), admin_keys="root", api_keys_file=tmp_path / "keys")
    root, part = {"Authorization": "Bearer root"}, {"Authorization": "Bearer secret"}
    keyed.client.headers.update(root)
    put(keyed.client, "a", adapters["a"])
    put(keyed.client, "b", adapters["b"], tokens_per_s=1)

    def ask_sum(adapter: str, key: dict[str, str]) -> httpx.Response:
        body = {"inputs": "the card is lost and my money is gone"}
        return keyed.client.post(f"/embed?adapter={adapter}", json=body, headers=key)

    answer = ask_sum("a:0.5+b:0.5", part)
    assert answer.status_code == 403
    info = f"/a/a:0.5+{'{}'}:0.5/info"
    assert keyed.client.get(info.format("a"), headers=part).status_code == 200
    assert keyed.client.get(info.format("b"), headers=part).status_code == 403
    assert "'b'" in answer.json()["error"]
    assert ask_sum("a:0.5", part).status_code == 200
    assert ask_sum("a:0.5+b:0.5", root).status_code == 200
    answer = ask_sum("a:0.5+b:0.5", root)
    assert answer.status_code == 429
    assert "the adapter b" in answer.json()["error"]


def test_an_admin_key_for_some_adapters_composes_of_those_alone(
    serve: Serve, tiny_bert: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("root\nteam  name=team adapters=team-*|a\n")
    keyed = serve(model=str(tiny_bert), admin_keys_file=tmp_path / "keys")
    keyed.client.headers["Authorization"] = "Bearer root"
    put(keyed.client, "a", adapters["a"])
    put(keyed.client, "b", adapters["b"])
    keyed.client.headers["Authorization"] = "Bearer team"
    for other in ("b", "gone", f"b@{'0' * 12}"):  # which of them exist is not told
        body = {"adapters": ["a", other]}
        answer = keyed.client.post("/adapters/team-sum/compose", json=body)
        assert (answer.status_code, answer.json()["error_type"]) == (403, "forbidden")
    answer = keyed.client.post("/adapters/team-sum/compose", json={"adapters": ["a"]})
    assert answer.status_code == 201


def test_two_choices_of_which_one_is_a_sum_agree_or_are_refused(server: LiveServer) -> None:
    body = {"inputs": TEXTS}
    same = {"X-Adapter": "a:0.7+b:0.3"}
    assert server.client.post("/embed?adapter=a:0.7+b:0.3", json=body, headers=same).is_success
    each = {"inputs": TEXTS, "adapters": ["a:0.7+b:0.3"] * 3}
    assert server.client.post("/embed?adapter=a:0.7+b:0.3", json=each).is_success
    other = {"X-Adapter": "a:0.7+b:0.4"}
    answer = server.client.post("/embed?adapter=a:0.7+b:0.3", json=body, headers=other)
    assert answer.status_code == 400
    for chosen, model in [
        ("a", "a:0.7+b:0.3"),
        ("a:0.7+b:0.3", "a"),
        ("a:0.7+b:0.3", "a:0.7+b:0.4"),
        ("a:0.5", "a"),
    ]:
        openai = {"model": model, "input": "x"}
        answer = server.client.post("/v1/embeddings", params={"adapter": chosen}, json=openai)
        assert answer.status_code == 400, (chosen, model)
    openai = {"model": "a:0.70 + b:0.3", "input": "x"}
    assert server.client.post("/v1/embeddings?adapter=a:0.7+b:0.3", json=openai).is_success
    known = server.client.get("/v1/models/a:0.7+b:0.3").json()
    assert known["id"] == "a:0.7+b:0.3"
    assert server.client.get("/a/a:0.7+b:0.3/v1/models").json()["data"][0]["id"] == "a:0.7+b:0.3"
    assert server.client.get("/v1/models/a:0.7+gone:0.3").status_code == 404


WAYS: dict[str, dict[str, Any]] = {
    "svd": {"svd_rank": 5},
    "ties": {"density": 0.4},
    "dare_linear": {"density": 0.5, "seed": 7},
    "dare_ties": {"density": 0.6, "seed": 7, "majority_sign_method": "frequency"},
    "magnitude_prune": {"density": 0.3, "svd_rank": 8},
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_kept_is_what_pefts_own_function_makes(
    tiny_bert: Path, adapters: dict[str, Path], server: LiveServer, way: str
) -> None:
    parts = {"adapters": ["a", "b"], "weights": [0.7, 0.3]}
    asked = {**parts, "combination_type": way, **WAYS[way]}
    made = server.client.post("/adapters/kept/compose", json=asked)
    assert made.status_code in (200, 201), made.text
    assert made.json()["rank"] == WAYS[way].get("svd_rank", 4)
    assert "composed of a@" in made.json()["warnings"][0]

    tuned = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), adapters["a"], "a")
    tuned.load_adapter(adapters["b"], "b")
    seed = WAYS[way].get("seed", 0)
    theirs = {k: v for k, v in WAYS[way].items() if k != "seed"}
    kind = way if way == "svd" else f"{way}_svd"
    add = tuned.add_weighted_adapter
    add(["a", "b"], [0.7, 0.3], "both", combination_type=kind, **theirs)
    if "dare" in way:  # PEFT draws the new adapter's first weights before: once more, seeded
        torch.manual_seed(seed)
        merge_seeded(tuned, kind, theirs)
    tuned.set_adapter("both")
    assert_close(ask(server.client, "kept"), states(tiny_bert, tuned), rtol=0, atol=2e-5)


def merge_seeded(tuned: Any, kind: str, theirs: dict[str, Any]) -> None:
    """As PEFT's add_weighted_adapter, for layers that are there."""
    sign = theirs.get("majority_sign_method", "total")
    for _, layer in tuned.named_modules():
        if isinstance(layer, LoraLayer):
            A, B = layer.lora_A["both"].weight, layer.lora_B["both"].weight
            A.data, B.data = tuned._svd_generalized_task_arithmetic_weighted_adapter(
                kind, ["a", "b"], [0.7, 0.3], 4, layer, A, B, theirs["density"], sign, None
            )


def test_a_linear_one_is_the_sum_and_goes_back_to_peft(
    tiny_bert: Path, server: LiveServer, tmp_path: Path
) -> None:
    asked = {"adapters": ["a", "head"], "weights": [0.7, 0.3]}
    made = server.client.post("/adapters/both/compose", json=asked)
    assert made.status_code == 201, made.text
    assert made.json()["labels"] == server.client.get("/adapters/head").json()["labels"]
    assert_close(ask(server.client, "both"), ask(server.client, "a:0.7+head:0.3"), **FP32)
    again = server.client.post("/adapters/both/compose", json=asked)
    assert (again.status_code, again.json().get("unchanged")) == (200, True)
    tar = server.client.get("/adapters/both/files").content
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        archive.extractall(tmp_path, filter="data")
    inputs = [encode(tiny_bert, t, 80) for t in TEXTS]
    logits = torch.stack(peft_answers(tiny_bert, tmp_path, inputs, task="SEQ_CLS"))
    body = {"inputs": TEXTS, "raw_scores": True}
    rows = server.client.post("/classify?adapter=both", json=body).json()
    labels = made.json()["labels"]
    got = [[next(s["score"] for s in row if s["label"] == n) for n in labels] for row in rows]
    assert_close(torch.tensor(got), logits, rtol=0, atol=1e-4)
    assert "composed of a@" in server.client.get("/adapters/both").json()["warnings"][0]
    versions = server.client.get("/adapters/both/versions").json()
    assert len(versions) == 1


def test_every_kind_that_adds_is_kept_as_it_is_summed(
    tiny_bert: Path, server: LiveServer, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for i, kind in enumerate(k for k in KINDS if k in KEPT):
        put(server.client, f"w{i}", make_kind(kind, "bert", tiny_bert, tmp_path / str(i), seed=i))
        with subtests.test(kind=kind):
            asked = {"adapters": [f"w{i}", "b"], "weights": [0.7, -0.5]}
            made = server.client.post(f"/adapters/w{i}-kept/compose", json=asked)
            assert made.status_code == 201, made.text
            got, wanted = ask(server.client, f"w{i}-kept"), ask(server.client, f"w{i}:0.7+b:-0.5")
            assert_close(got, wanted, **FP32)
            tar = server.client.get(f"/adapters/w{i}-kept/files").content
            with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
                archive.extractall(tmp_path / f"{i}-kept", filter="data")
            inputs = [encode(tiny_bert, t, 80) for t in TEXTS]
            pefts = torch.stack(peft_answers(tiny_bert, tmp_path / f"{i}-kept", inputs))
            assert_close(pefts, wanted, **FP32)


KEPT = {
    "patterns", "embedding", "lora_bias", "bias all", "norms whole", "a linear whole", "pissa",
    "loha, large", "oft", "ln tuning",
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"adapters": []}, 422),
        ({"adapters": ["a", "gone"]}, 404),
        ({"adapters": ["a", "b"], "weights": [1]}, 422),
        ({"adapters": ["a", "b"], "weights": [1, 1e9]}, 422),
        ({"adapters": ["a", "b"], "combination_type": "ties"}, 422),
        ({"adapters": ["a", "b"], "combination_type": "ties_svd", "density": 0.5}, 422),
        ({"adapters": ["a", "b"], "svd_rank": 4}, 422),
        ({"adapters": ["a", "b"], "density": 0.5}, 422),
        ({"adapters": ["a", "dora"]}, 422),
        ({"adapters": ["a"], "weights": [0]}, 422),
        ({"adapters": ["a", "a"], "weights": [1, -1]}, 422),
        ({"adapters": ["a"] * 9}, 422),
        ({"adapters": "a:0.7+b:0.3"}, 422),
        ({}, 422),
    ],
)
def test_what_cannot_be_kept_is_refused_and_nothing_is_left(
    server: LiveServer, body: dict[str, Any], status: int
) -> None:
    answer = server.client.post("/adapters/never/compose", json=body)
    assert answer.status_code == status, answer.text
    assert server.client.get("/adapters/never").status_code == 404
