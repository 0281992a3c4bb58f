"""What heads are for: labels of texts and pairs, of words, scores, ranks; against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load, load_file, save
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing
from torch.testing import assert_close
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    pipeline,
)

from app.inference import words
from tests.conftest import Serve
from tests.kinds import make_kind, peft_answers
from tests.live import LiveServer
from tests.oracles import FP32, encode, files_of, put
from tests.tiny import SIZES, save_tiny_base, tiny_tokenizer

NER = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
SENTENCES = [
    "Angela Merkel visited Kyrgyzstan's capital Bishkek, didn't she?",
    "Unbelievably,   antidisestablishmentarianism  (in Wales) persists — naïve café owners say so.",
    "ok",
]


@pytest.fixture(scope="module")
def ner(
    minilm: Path, minilm_server: LiveServer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """A token-labelling adapter on the server, and PEFT's model of it in transformers' pipeline."""
    folder = make_kind(
        "plain", "bert", minilm, tmp_path_factory.mktemp("ner"), task="TOKEN_CLS", labels=5
    )
    config = folder / "adapter_config.json"
    said = json.loads(config.read_text()) | {"base_model_name_or_path": "all-MiniLM-L6-v2"}
    config.write_text(json.dumps(said))
    (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(NER))}))
    put(minilm_server.client, "ner", folder)
    model = AutoModelForTokenClassification.from_pretrained(minilm, num_labels=5)
    model.config.id2label = dict(enumerate(NER))
    tuned = PeftModel.from_pretrained(model, folder).merge_and_unload().eval()
    return folder, pipeline("token-classification", tuned, tokenizer=AutoTokenizer.from_pretrained(minilm))  # fmt: skip


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_words_and_their_places_are_the_pipelines(
    minilm_server: LiveServer, ner: tuple[Path, Any], strategy: str
) -> None:
    body = {"inputs": SENTENCES, "aggregation_strategy": strategy}
    got = minilm_server.client.post("/classify?adapter=ner", json=body).json()
    wanted = ner[1](SENTENCES, aggregation_strategy=strategy)
    found = 0
    for text, mine, theirs in zip(SENTENCES, got, wanted, strict=True):
        assert [{k: v for k, v in e.items() if k != "score"} for e in mine] == [
            {k: v for k, v in e.items() if k != "score"} for e in theirs
        ]
        for a, b in zip(mine, theirs, strict=True):
            assert a["score"] == pytest.approx(float(b["score"]), abs=1e-5)
            assert text[a["start"] : a["end"]]
        found += len(mine)
    assert found > 5


def test_words_are_labelled_beside_texts_and_vectors_in_one_request(
    minilm: Path, minilm_server: LiveServer, ner: tuple[Path, Any], tmp_path: Path
) -> None:
    folder = make_kind("plain", "bert", minilm, tmp_path, task="SEQ_CLS", labels=3)
    put(minilm_server.client, "seq", folder)
    alone = minilm_server.post("/classify?adapter=ner", inputs=SENTENCES[0])
    body = {"inputs": [SENTENCES[0], "fine"], "adapters": ["ner", "seq"]}
    words, labels = minilm_server.client.post("/classify", json=body).json()
    assert [e["word"] for e in words] == [e["word"] for e in alone]
    assert [e["score"] for e in words] == pytest.approx([e["score"] for e in alone], abs=1e-5)
    assert len(labels) == 3


@pytest.mark.parametrize(("task", "wanted"), [("TOKEN_CLS", 1), ("SEQ_CLS", 0)])
def test_what_words_need_is_there_before_a_server_that_labels_them_is_ready(
    serve: Serve,
    tiny_bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    wanted: int,
) -> None:
    prepared: list[Any] = []
    monkeypatch.setattr(words, "prepare", prepared.append)
    make_kind("plain", "bert", tiny_bert, tmp_path / "all" / "mine", task=task, labels=5)
    server = serve(model=str(tiny_bert), adapters_dir=tmp_path / "all")
    assert len(prepared) == wanted
    assert len(server.post("/classify?adapter=mine", inputs="good")) > 0


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("spaces", [False, True])
def test_a_byte_level_tokenizers_words_are_the_pipelines(
    serve: Serve, tmp_path: Path, strategy: str, spaces: bool
) -> None:
    """RoBERTa's: a word's space belongs to its first token, and is trimmed off its place."""
    base = save_tiny_base("roberta", tmp_path / "base")
    byte_level_tokenizer(spaces).save_pretrained(base)
    folder = make_kind("plain", "roberta", base, tmp_path / "a", task="TOKEN_CLS", labels=5)
    (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(NER))}))
    client = serve(model=str(base)).client
    put(client, "ner", folder)
    model = AutoModelForTokenClassification.from_pretrained(base, num_labels=5)
    model.config.id2label = dict(enumerate(NER))
    tuned = PeftModel.from_pretrained(model, folder).merge_and_unload().eval()
    theirs = pipeline(
        "token-classification",
        tuned,
        tokenizer=AutoTokenizer.from_pretrained(base, model_max_length=79),
    )
    texts = [" leading space  and   doubles", "Angela's café — didn't she? 東京", "ok"]
    body = {"inputs": texts, "aggregation_strategy": strategy}
    got = client.post("/classify?adapter=ner", json=body).json()
    for mine, wanted in zip(got, theirs(texts, aggregation_strategy=strategy), strict=True):
        assert len(mine) == len(wanted)
        for a, b in zip(mine, wanted, strict=True):
            assert a.pop("score") == pytest.approx(float(b.pop("score")), abs=1e-5)
            assert a == b


def byte_level_tokenizer(add_prefix_space: bool) -> PreTrainedTokenizerFast:
    """Bytes alone are too many for the tiny vocabulary, so what is rare is unknown."""
    letters = "abcdefghijklmnopqrstuvwxyzAL .,!?'—é"
    pieces = ByteLevel(add_prefix_space=False).pre_tokenize_str(letters)
    alphabet = sorted({letter for piece, _ in pieces for letter in piece})
    words = ["<s>", "<pad>", "</s>", "<unk>", *alphabet]
    merges = [("Ġ", "l"), ("Ġ", "a"), ("a", "n"), ("Ġa", "n")]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys([*words, *(a + b for a, b in merges)]))}
    kept = [(a, b) for a, b in merges if a in vocabulary and b in vocabulary]
    backend = Tokenizer(BPE(vocabulary, kept, unk_token="<unk>"))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=add_prefix_space)
    backend.post_processor = RobertaProcessing(
        ("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"]), add_prefix_space=add_prefix_space
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", cls_token="<s>", sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


@pytest.mark.parametrize("inputs", [[["a", "b"]], [101, 7, 102], [["a text"], ["b", "c"]]])
def test_words_of_what_is_no_text_are_refused(
    minilm_server: LiveServer, ner: tuple[Path, Any], inputs: Any
) -> None:
    answer = minilm_server.client.post("/classify?adapter=ner", json={"inputs": inputs})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


@pytest.mark.parametrize("how", ["query", "config.json"])
def test_multi_label_scores_are_sigmoids(
    tiny_server: LiveServer, tiny_bert: Path, tmp_path: Path, how: str
) -> None:
    folder = make_kind("dora", "bert", tiny_bert, tmp_path, task="SEQ_CLS", labels=4)
    said = {"problem_type": "multi_label_classification"}
    if how == "config.json":
        (folder / "config.json").write_text(json.dumps(said))
    put(tiny_server.client, "multi", folder, **(said if how == "query" else {}))
    got = tiny_server.post("/classify?adapter=multi", inputs="my card")
    logits = peft_answers(tiny_bert, folder, [encode(tiny_bert, "my card", 80)], task="SEQ_CLS", labels=4)  # fmt: skip
    by_label = {e["label"]: e["score"] for e in got}
    assert_close(
        torch.tensor([by_label[f"LABEL_{i}"] for i in range(4)]), logits[0].sigmoid(), **FP32
    )


@pytest.fixture(scope="module")
def ranker(
    minilm: Path, minilm_server: LiveServer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A head of one label."""
    folder = make_kind(
        "plain", "bert", minilm, tmp_path_factory.mktemp("rank"), task="SEQ_CLS", labels=1
    )
    put(minilm_server.client, "ranker", folder)
    return folder


def test_reranking_is_pefts_scores_of_the_pairs_best_first(
    minilm: Path, minilm_server: LiveServer, ranker: Path
) -> None:
    texts = ["It is late.", "A masterpiece.", "Call the bank, please", "x"]
    pairs = [encode(minilm, ("Where is my card?", text), 256) for text in texts]
    wanted = torch.stack(peft_answers(minilm, ranker, pairs, task="SEQ_CLS", labels=1))[:, 0]
    assert len(set(pairs[0]["token_type_ids"][0].tolist())) == 2
    for raw in (True, False):
        body = {
            "query": "Where is my card?",
            "texts": texts,
            "raw_scores": raw,
            "return_text": True,
        }
        got = minilm_server.client.post("/rerank?adapter=ranker", json=body).json()
        scores = wanted if raw else wanted.sigmoid()
        assert [e["index"] for e in got] == scores.argsort(descending=True).tolist()
        assert [e["text"] for e in got] == [texts[e["index"]] for e in got]
        assert_close(
            torch.tensor([e["score"] for e in got]), scores.sort(descending=True)[0], **FP32
        )


def test_predict_reads_two_texts_as_one_pair(minilm_server: LiveServer, ranker: Path) -> None:
    pair = minilm_server.post("/predict?adapter=ranker", inputs=["Where?", "Here."])
    listed = minilm_server.post("/predict?adapter=ranker", inputs=[["Where?", "Here."], ["Where?"]])
    same = minilm_server.post("/classify?adapter=ranker", inputs=[["Where?", "Here."]])
    assert pair[0]["score"] == pytest.approx(listed[0][0]["score"], abs=1e-5)
    assert same[0][0]["score"] == pytest.approx(pair[0]["score"], abs=1e-5)
    assert len(listed) == 2


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/rerank?adapter=ner", {"query": "a", "texts": ["b"]}, 424),
        ("/rerank?adapter=ranker", {"query": "a", "texts": []}, 400),
        ("/rerank?adapter=ranker", {"query": "a", "texts": ["b", ""]}, 400),
        ("/rerank?adapter=ranker&adapter=ner", {"query": "a", "texts": ["b"]}, 422),
        ("/predict?adapter=ranker", {"inputs": [["a", "b", "c"]]}, 422),
        ("/predict?adapter=ranker&adapter=ner", {"inputs": "a"}, 422),
    ],
)
def test_what_cannot_be_ranked_or_predicted_is_refused(
    minilm_server: LiveServer,
    ranker: Path,
    ner: tuple[Path, Any],
    path: str,
    body: Any,
    status: int,
) -> None:
    answer = minilm_server.client.post(path, json=body)
    assert answer.status_code == status, answer.text


def test_a_base_with_its_own_head_lends_it_to_adapters_that_do_not_bring_it(
    serve: Serve, tmp_path: Path
) -> None:
    """ModernBERT's checkpoints hold head.*; here the adapter even has LoRA on head.dense."""
    torch.manual_seed(3)
    config = ModernBertConfig(
        **SIZES, num_labels=3, classifier_pooling="mean", cls_token_id=2, sep_token_id=3
    )
    base = tmp_path / "base"
    AutoModelForSequenceClassification.from_config(config).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    lora = LoraConfig(r=4, target_modules=["Wqkv", "dense"])
    folder = make_kind(
        "", "modernbert", base, tmp_path / "a", task="SEQ_CLS", config=lora, whole=("classifier",)
    )
    client = serve(model=str(base)).client
    put(client, "a", folder)
    got = client.post("/classify?adapter=a", json={"inputs": "my card", "raw_scores": True}).json()
    wanted = peft_answers(base, folder, [encode(base, "my card", 80)], task="SEQ_CLS")[0]
    by_label = {e["label"]: e["score"] for e in got}
    assert_close(torch.tensor([by_label[f"LABEL_{i}"] for i in range(3)]), wanted, **FP32)


def test_a_head_whose_layers_are_nowhere_is_refused_by_name(
    tiny_server: LiveServer, tiny_bert: Path, tmp_path: Path
) -> None:
    folder = make_kind("plain", "bert", tiny_bert, tmp_path / "a")
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"task_type": "SEQ_CLS"}))
    answer = tiny_server.client.put("/adapters/nohead", files=files_of(folder))
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["tensor"] == "classifier.weight"


def test_an_adapter_of_a_head_alone_is_served(
    tiny_server: LiveServer, tiny_bert: Path, tmp_path: Path
) -> None:
    """A linear probe: the encoder stays the base's."""
    folder = make_kind("plain", "bert", tiny_bert, tmp_path / "a", task="SEQ_CLS")
    tensors = load_file(folder / "adapter_model.safetensors")
    head = save({n: t for n, t in tensors.items() if "classifier" in n})
    answer = tiny_server.client.put("/adapters/probe?labels=a,b,c&task=classify", content=head)
    assert (answer.status_code, answer.json()["delta"]["relative"]) == (201, 0.0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3).eval()
    weights = {n.removeprefix("base_model.model."): t for n, t in load(head).items()}
    model.load_state_dict(weights, strict=False)
    with torch.inference_mode():
        wanted = model(**encode(tiny_bert, "my card", 80)).logits[0]
    body = {"inputs": "my card", "raw_scores": True}
    found = tiny_server.client.post("/classify?adapter=probe", json=body).json()
    by_label = {e["label"]: e["score"] for e in found}
    assert_close(torch.tensor([by_label[n] for n in "abc"]), wanted, **FP32)
    tiny_server.client.delete("/adapters/probe")
