"""A task chooses adapter, prompt and pooling; jina-embeddings-v3's five, from the base's own folder.

The base is random and small, laid out as jinaai/jina-embeddings-v3-hf is: its config.json with the
authors' own fields, sentence-transformers' files, and a folder for each adapter.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModel, AutoTokenizer, XLMRobertaTokenizer

from app.assemble import StartRefused
from tests.conftest import Serve
from tests.hub import serving_hub
from tests.kinds import randomise
from tests.live import LiveServer, live_server
from tests.oracles import FP32, make_adapter, peft_embeddings, plain_embeddings, put
from tests.process import start
from tests.tiny import save_tiny_base

FILE = Path(__file__).parents[2] / "examples" / "jina-v3" / "tasks.json"
TASKS: dict[str, dict[str, str]] = json.loads(FILE.read_text(encoding="utf-8"))
PROMPTS = {name: task.get("prompt", "") for name, task in TASKS.items()}
ADAPTERS = [task["adapter"] for task in TASKS.values()]
TEXTS = ["how is the film?", "die Karte ist weg", "money lost " * 30]
PIECES = [
    *"abcdefghijklmnopqrstuvwxyzDR:?", "▁", "▁the", "▁film", "▁money", "▁lost", "▁retriev", "▁is",
]  # fmt: skip


def jina(folder: Path) -> Path:
    """A tiny one. Its files' fields are those of the hub's repository, revision d18862d9."""
    tokenizer = XLMRobertaTokenizer(
        vocab=[("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        + [(piece, -2.0 + 0.01 * i) for i, piece in enumerate(PIECES)]
        + [("<mask>", 0.0)]
    )
    save_tiny_base(
        "jina_embeddings_v3", folder, vocab_size=len(tokenizer), pad_token_id=1, bos_token_id=0,
        eos_token_id=2, max_position_embeddings=130,
    )  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]  # as the repository has it: the class knows its own
    config |= {
        "_name_or_path": "jinaai/jina-embeddings-v3",
        "lora_adaptations": list(TASKS),
        "matryoshka_dimensions": [8, 16, 32],
        "position_embedding_type": "rotary",
        "rotary_emb_base": 20000.0,
        "torch_dtype": "bfloat16",
        "truncate_dim": None,
        "use_flash_attn": True,
        "task_instructions": PROMPTS,
    }
    modules = [
        {"idx": 0, "name": "transformer", "path": "", "type": "custom_st.Transformer"},
        {"idx": 1, "name": "pooler", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "normalizer", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]  # fmt: skip
    (folder / "1_Pooling").mkdir()
    for name, content in (
        ("config.json", config),
        ("modules.json", modules),
        ("1_Pooling/config.json", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}),
        ("config_sentence_transformers.json", {"prompts": PROMPTS, "default_prompt_name": None}),
    ):  # fmt: skip
        (folder / name).write_text(json.dumps(content))
    for seed, name in enumerate(ADAPTERS):
        _adapter(folder, folder / name, seed)
    return folder


def _adapter(base: Path, folder: Path, seed: int) -> None:
    """With the layers that Jina's adapters change, and no more in its config than theirs."""
    targets = [
        "word_embeddings", "token_type_embeddings", "q_proj", "k_proj", "v_proj", "o_proj", "fc1",
        "fc2", "dense",
    ]  # fmt: skip
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=1, lora_dropout=0.0, target_modules=targets)
    tuned = get_peft_model(AutoModel.from_pretrained(base), config)
    randomise(tuned)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    shutil.rmtree(folder / "README.md", ignore_errors=True)
    own = {"peft_type": "LORA", "base_model_name_or_path": None, "r": 4, "lora_alpha": 1}
    own |= {"lora_dropout": 0.0, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(own))


@torch.inference_mode()
def pefts_own(base: Path, task: str, texts: list[str], pooling: str = "mean") -> Tensor:
    """As its authors say: the adapter of the subfolder, the prompt, the mean, length 1."""
    plain = AutoModel.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, str(base), subfolder=TASKS[task]["adapter"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = []
    for text in texts:
        given = tokenizer(
            PROMPTS[task] + text, truncation=True, max_length=130, return_tensors="pt"
        )
        states = model(**given).last_hidden_state[0]
        rows.append(F.normalize(states.mean(0) if pooling == "mean" else states[0], dim=0))
    return torch.stack(rows)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jina(tmp_path_factory.mktemp("hub") / "jina-embeddings-v3-hf")


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Two settings, and no upload."""
    root = tmp_path_factory.mktemp("jina")
    running = live_server(
        model=str(base), tasks_file=FILE, store=root / "store", adapters_dir=root / "none"
    )
    yield running
    running.stop()


@pytest.fixture
def client(server: LiveServer) -> httpx.Client:
    return server.client


def rows(answer: httpx.Response) -> Tensor:
    assert answer.status_code == 200, answer.text
    return torch.tensor(answer.json())


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    return answer.status_code, answer.json()["error_type"], answer.json()["error"]


@pytest.mark.parametrize("task", TASKS)
def test_each_of_jinas_tasks_is_transformers_with_pefts(
    client: httpx.Client, base: Path, task: str
) -> None:
    answer = client.post("/embed", json={"inputs": TEXTS, "task": task})
    assert re.fullmatch(rf"{TASKS[task]['adapter']}@\w+", answer.headers["x-adapter"])
    assert_close(rows(answer), pefts_own(base, task, TEXTS), **FP32)


def test_the_tasks_differ_from_each_other_and_from_the_base(client: httpx.Client) -> None:
    asked: list[dict[str, Any]] = [{}, *({"task": task} for task in TASKS)]
    answers = [rows(client.post("/embed", json={"inputs": TEXTS, **more})) for more in asked]
    for i, one in enumerate(answers):
        assert all((one - other).abs().max() > 1e-3 for other in answers[:i])


def test_info_lists_the_tasks(client: httpx.Client) -> None:
    listed = client.get("/info").json()
    unsaid = {"prompt": None, "pooling": None}
    assert listed["tasks"] == {name: unsaid | task for name, task in sorted(TASKS.items())}
    assert listed["adapters"] == sorted(ADAPTERS)
    assert listed["max_input_length"] == 130


def test_what_the_request_says_goes_before_what_the_task_says(
    client: httpx.Client, base: Path
) -> None:
    body = {"inputs": TEXTS, "task": "retrieval.query"}
    plain = {"inputs": [PROMPTS["retrieval.query"] + text for text in TEXTS], "prompt": ""}
    wanted = rows(client.post("/embed", json=body))
    for same in (
        client.post("/embed?adapter=retrieval_query", json=body),
        client.post("/embed", json=body | plain),
        client.post("/embed", json=body | {"adapters": ["retrieval_query"] * 3}),
        client.post("/embed?adapter=base", json=body),
        client.post("/embed?adapter=jina-embeddings-v3-hf", json=body),
        client.post("/embed?adapter=retrieval_query", json=plain),
    ):
        assert torch.equal(rows(same), wanted)
    cls = client.post("/embed", json=body | {"pooling": "cls"})
    assert_close(rows(cls), pefts_own(base, "retrieval.query", TEXTS, "cls"), **FP32)
    named = client.post("/embed", json=body | {"prompt_name": "retrieval.passage"})
    given = client.post("/embed", json=body | {"prompt": PROMPTS["retrieval.passage"]})
    assert torch.equal(rows(named), rows(given))
    assert (rows(named) - wanted).abs().max() > 1e-3


def test_a_prompt_of_the_bases_own_is_no_task(client: httpx.Client) -> None:
    """As in sentence-transformers, where prompt_name alone is the prompt alone."""
    answer = client.post("/embed", json={"inputs": TEXTS, "prompt_name": "retrieval.query"})
    assert answer.headers["x-adapter"].startswith("base@")


@pytest.mark.parametrize("query", ["?adapter=separation", "?adapter=text_matching&adapter=base"])
def test_another_adapter_than_the_tasks_is_a_contradiction(
    client: httpx.Client, query: str
) -> None:
    body = {"inputs": TEXTS, "task": "text-matching"}
    status, kind, told = refusal(client.post(f"/embed{query}", json=body))
    assert (status, kind) == (400, "Validation")
    assert "task 'text-matching' is the adapter text_matching's" in told
    mixed = body | {"adapters": ["text_matching", None, "text_matching"]}
    assert client.post("/embed", json=mixed).status_code == 400


def test_an_unknown_task_is_refused_with_those_there_are(client: httpx.Client) -> None:
    answer = client.post("/embed", json={"inputs": "a", "task": "retrieval"})
    status, kind, told = refusal(answer)
    assert (status, kind) == (422, "Validation")
    names = "classification, retrieval.passage, retrieval.query, separation, text-matching"
    assert told == f"task: is 'retrieval'; this server names {names}" or names in told


def test_token_ids_take_a_task_without_a_prompt_only(client: httpx.Client) -> None:
    ids = [0, 5, 9, 2]
    given = client.post("/embed", json={"inputs": [ids], "task": "separation"})
    assert given.status_code == 200
    status, _, told = refusal(
        client.post("/embed", json={"inputs": [ids], "task": "retrieval.query"})
    )
    assert status == 422 and "cannot be put before token ids" in told
    bare = {"inputs": [ids], "task": "retrieval.query", "prompt": ""}
    assert client.post("/embed", json=bare).status_code == 200


def test_a_base_brings_its_adapters_again_unless_a_client_has_changed_them(
    serve: Serve, base: Path, tmp_path: Path
) -> None:
    settings = {"model": str(base), "tasks_file": FILE}
    server = serve(**settings)
    server.client.delete("/adapters/separation")
    put(server.client, "classification", base / "text_matching")
    server.stop()
    again = serve(**settings).client
    status, kind, told = refusal(again.post("/embed", json={"inputs": "a", "task": "separation"}))
    assert (status, kind) == (404, "adapter_not_found")
    assert "task 'separation' needs its adapter, and no adapter is called 'separation'" in told
    put(again, "separation", base / "separation")
    assert_close(
        rows(again.post("/embed", json={"inputs": TEXTS, "task": "separation"})),
        pefts_own(base, "separation", TEXTS),
        **FP32,
    )
    changed = rows(again.post("/embed", json={"inputs": TEXTS, "task": "classification"}))
    assert_close(changed, pefts_own(base, "text-matching", TEXTS), **FP32)


def test_a_folder_of_adapters_dir_goes_before_the_bases_own(
    serve: Serve, base: Path, tmp_path: Path
) -> None:
    adapters = tmp_path / "adapters"
    shutil.copytree(base / "text_matching", adapters / "separation")
    for _ in range(2):
        server = serve(model=str(base), tasks_file=FILE, adapters_dir=adapters)
        assert server.client.get("/info").json()["adapters"] == sorted(ADAPTERS)
        got = rows(server.client.post("/embed", json={"inputs": TEXTS, "task": "separation"}))
        assert_close(got, pefts_own(base, "text-matching", TEXTS), **FP32)
        assert len(server.client.get("/adapters/separation/versions").json()) == 1
        server.stop()


def test_an_adapter_of_the_base_that_cannot_be_served_is_named_and_the_others_are_served(
    serve: Serve, base: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(base, tmp_path / "base")
    (copy / "separation" / "adapter_model.safetensors").write_bytes(b"half a file")
    client = serve(model=str(copy), tasks_file=FILE).client
    assert "separation" in client.get("/readyz").json()["broken"]
    status, _, told = refusal(client.post("/embed", json={"inputs": "a", "task": "separation"}))
    assert status == 404 and "task 'separation'" in told and "is there but not served" in told
    assert client.post("/embed", json={"inputs": "a", "task": "classification"}).status_code == 200


@pytest.mark.slow
def test_from_the_hub_two_settings_are_enough(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of its own downloads the base with its adapters, and nothing that it cannot use."""
    repository = shutil.copytree(base, tmp_path / "repository")
    (repository / "onnx").mkdir()
    for name in ("custom_st.py", "onnx/model.onnx", "pytorch_model.bin"):
        (repository / name).write_bytes(b"not wanted")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serving_hub("jinaai/jina-embeddings-v3-hf", repository) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        running = start(tmp_path, model="jinaai/jina-embeddings-v3-hf", tasks_file=FILE)
        for task in TASKS:
            got = rows(running.client.post("/embed", json={"inputs": TEXTS, "task": task}))
            assert_close(got, pefts_own(base, task, TEXTS), **FP32)
        assert running.end() == 0
    downloaded = {path.name for path in (tmp_path / "home").rglob("*")}
    assert not {"custom_st.py", "model.onnx", "pytorch_model.bin"} & downloaded
    assert {"retrieval_query", "adapter_model.safetensors"} <= downloaded


def test_without_tasks_the_bases_folders_are_no_adapters(serve: Serve, base: Path) -> None:
    client = serve(model=str(base)).client
    assert client.get("/info").json()["adapters"] == []
    _, _, told = refusal(client.post("/embed", json={"inputs": "a", "task": "separation"}))
    assert "this server names none (BERT_LORA_TASKS_FILE is to name them)" in told


def test_a_prompt_name_that_is_no_prompt_picks_the_task(
    serve: Serve, tiny_bert: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tasks.json"
    task = {"adapter": "a", "prompt": "film ", "pooling": "cls"}
    file.write_text(json.dumps({"query": task, "bare": {"prompt": "my "}}))
    client = serve(model=str(tiny_bert), tasks_file=file).client
    body: dict[str, Any] = {"inputs": ["the card", "good"]}
    folder = make_adapter(tiny_bert, tmp_path / "a", 1)
    put(client, "a", folder)
    named = client.post("/embed", json=body | {"prompt_name": "query"})
    wished = {"prompt": "film ", "pooling": "cls"}
    assert torch.equal(rows(named), rows(client.post("/embed?adapter=a", json=body | wished)))
    assert named.headers["x-embedding-space"].endswith(";pooling=cls")
    mean = client.post("/embed", json=body | {"task": "query", "pooling": "mean"})
    assert_close(
        rows(mean), peft_embeddings(tiny_bert, folder, ["film the card", "film good"]), **FP32
    )
    bare = client.post("/embed?adapter=a", json=body | {"task": "bare"})
    assert_close(rows(bare), peft_embeddings(tiny_bert, folder, ["my the card", "my good"]), **FP32)
    unknown = client.post("/embed", json=body | {"prompt_name": "passage"})
    assert "prompt_name" in refusal(unknown)[2]
    wanted = peft_embeddings(tiny_bert, folder, ["lost the card", "lost good"])
    config = json.loads((folder / "adapter_config.json").read_text())
    own = config | {"prompts": {"query": "lost "}}
    (folder / "adapter_config.json").write_text(json.dumps(own))
    put(client, "b", folder)
    prompted = client.post("/embed?adapter=b", json=body | {"prompt_name": "query"})
    assert_close(rows(prompted), wanted, **FP32)


def test_coheres_input_type_picks_a_task_unless_another_adapter_is_chosen(
    serve: Serve, tiny_bert: Path, tmp_path: Path
) -> None:
    """It is compulsory there, and so contradicts nothing."""
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps({"search_query": {"adapter": "a", "prompt": "film "}}))
    client = serve(model=str(tiny_bert), tasks_file=file).client
    folders = {name: make_adapter(tiny_bert, tmp_path / name, i) for i, name in enumerate("ab")}
    for name, folder in folders.items():
        put(client, name, folder)

    def ask(model: str, input_type: str) -> Tensor:
        body = {"model": model, "input_type": input_type, "texts": ["the card"]}
        return torch.tensor(client.post("/v2/embed", json=body).json()["embeddings"]["float"])

    own = peft_embeddings(tiny_bert, folders["a"], ["film the card"])
    for model in ("base", "tiny-bert", "a"):
        assert_close(ask(model, "search_query"), own, **FP32)
    other = peft_embeddings(tiny_bert, folders["b"], ["the card"])
    assert_close(ask("b", "search_query"), other, **FP32)
    plain = plain_embeddings(tiny_bert, ["the card"])
    assert_close(ask("base", "search_document"), plain, **FP32)


def test_a_key_is_held_to_its_adapters(serve: Serve, base: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sesame name=team adapters=retrieval_*\n")
    client = serve(model=str(base), tasks_file=FILE, api_keys_file=keys).client
    headers = {"Authorization": "Bearer sesame"}
    listed = client.get("/info", headers=headers).json()["tasks"]
    assert list(listed) == ["retrieval.passage", "retrieval.query"]

    def ask(task: str) -> httpx.Response:
        return client.post("/embed", json={"inputs": "a", "task": task}, headers=headers)

    assert ask("retrieval.query").status_code == 200
    assert refusal(ask("separation"))[:2] == (403, "forbidden")
    assert "separation" not in refusal(ask("nothing"))[2]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file"),
        ("[]", "Input should be an object"),
        ('{"a": {"adapter": "x", "promt": "y"}}', "a: promt: Extra inputs are not permitted"),
        ('{"a": {"adapter": "no/name"}}', "a: adapter: .*'no/name' is no adapter name"),
        ('{"a": {"pooling": "sum"}}', "a: pooling: Input should be 'mean'"),
        ('{"a": {"pooling": "pooler"}}', "a pooling is pooler, and this base has none"),
        ('{"a": ', "Invalid JSON"),
    ],
)
def test_a_file_of_tasks_that_is_none_stops_the_start(
    serve: Serve, tmp_path: Path, content: str | None, told: str
) -> None:
    base = save_tiny_base("distilbert", tmp_path / "base")
    if content is not None:
        (tmp_path / "tasks.json").write_text(content)
    with pytest.raises(StartRefused, match=told):
        serve(model=str(base), tasks_file=tmp_path / "tasks.json")
