"""Where PEFT silently leaves something out, or does what one would not guess: its answer, or a
refusal.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import (
    AdaLoraConfig,
    FourierFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.lora.config import BdLoraConfig, KasaConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForSequenceClassification

from tests.conftest import Serve
from tests.kinds import make_kind, peft_answers, randomise
from tests.oracles import FP32, encode, files_of, put
from tests.tiny import save_tiny_base

TEXTS = ["the card is lost", "how good is my money film?"]
Change = Callable[[dict[str, Tensor], dict[str, Any]], Any]
QUERY = "base_model.model.encoder.layer.0.attention.self.query"
DENSE = "base_model.model.encoder.layer.0.output.dense"
WORDS = "base_model.model.embeddings.word_embeddings"
NORM = "base_model.model.encoder.layer.0.output.LayerNorm"


def edited(folder: Path, change: Change) -> Path:
    """The folder with its tensors and config changed in place."""
    path, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors, said = load_file(path), json.loads(config.read_text())
    change(tensors, said)
    save_file({k: t.contiguous() for k, t in tensors.items()}, path)
    config.write_text(json.dumps(said))
    return folder


def renamed(old: str, new: str) -> Change:
    def change(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        for name in [n for n in tensors if old in n]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def lora(**said: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["query"], **said})


LEFT_OUT: dict[str, tuple[Callable[[], Any], Change]] = {
    "a trained bias under its old name": (lambda: lora(bias="lora_only"), renamed("base_layer.bias", "bias")),
    "a bias of an adapted layer": (lora, lambda t, _: t.update({f"{QUERY}.bias": torch.ones(32)})),
    "an embedding's magnitude lost": (
        lambda: lora(use_dora=True, target_modules=["word_embeddings", "query"]),
        lambda t, _: t.pop(f"{WORDS}.lora_magnitude_vector"),
    ),
    "targets that the config does not name": (lora, lambda _, c: c.update(target_modules=None)),
    "an adapted embedding's table": (
        lambda: lora(target_modules=["word_embeddings"]),
        lambda t, _: t.update({f"{WORDS}.weight": torch.randn(85, 32)}),
    ),
    "a base layer of what is not adapted": (
        lora, lambda t, _: t.update({f"{DENSE}.base_layer.weight": torch.randn(32, 64),
                                     f"{DENSE}.base_layer.bias": torch.randn(32)}),
    ),
    "a norm's base layer": (
        lora, lambda t, _: t.update({f"{NORM}.base_layer.{x}": torch.randn(32) for x in ("weight", "bias")}),
    ),
    "a tuned norm in a LoRA file": (
        lora, lambda t, _: t.update({f"{NORM}.ln_tuning_layers.{x}": torch.randn(32) for x in ("weight", "bias")}),
    ),
    "a saved module that the config does not name": (
        lora, lambda t, _: t.update({f"{NORM}.modules_to_save.{x}": torch.randn(32) for x in ("weight", "bias")}),
    ),
    "tuned norms without their wrapper's name": (
        lambda: LNTuningConfig(target_modules=["LayerNorm"]), renamed(".ln_tuning_layers", ""),
    ),
    "alpha in another method's word": (lambda: LoHaConfig(r=2, alpha=3, target_modules=["query"]), lambda _, c: c.update(lora_alpha=32)),
    "alpha in no method's word": (lora, lambda _, c: (c.pop("lora_alpha"), c.update(alpha=32))),
    "projections that the config says are not saved": (
        lambda: VeraConfig(r=4, target_modules=["query"]),
        lambda _, c: c.update(save_projection=False, projection_prng_key=99),
    ),
    "projections that the config says are saved": (
        lambda: VeraConfig(r=4, target_modules=["query"]),
        lambda t, _: (t.pop("base_model.vera_A"), t.pop("base_model.vera_B")),
    ),
    "token ids without their rows": (lora, lambda _, c: c.update(trainable_token_indices=[3, 5])),
    "a magnitude that the config leaves off": (lambda: lora(use_dora=True), lambda _, c: c.update(use_dora=False)),
    "a bias on lora_B that the config leaves off": (lambda: lora(lora_bias=True), lambda _, c: c.update(lora_bias=False)),
    "a seed beyond any generator": (
        lambda: FourierFTConfig(n_frequency=9, target_modules=["query"]),
        lambda _, c: c.update(random_loc_seed=2**64),
    ),
    "a series without end": (
        lambda: OFTConfig(oft_block_size=8, target_modules=["query"]),
        lambda _, c: c.update(num_cayley_neumann_terms=10**8),
    ),
    "a factor in two that PEFT looks for whole": (
        lambda: LoKrConfig(r=1, decompose_both=True, target_modules=["intermediate.dense"]),
        lambda _, c: c.update(decompose_both=False),
    ),
    "a whole factor that PEFT looks for in two": (
        lambda: LoKrConfig(r=20, target_modules=["query"]), lambda _, c: c.update(r=1),
    ),
    "some names with PEFT's prefix, some without": (
        lora, lambda t, _: t.update({n.removeprefix("base_model.model."): t.pop(n) for n in list(t) if "layer.0" in n}),
    ),
    "some layers with the model's prefix, some without": (
        lora, lambda t, _: t.update({n.replace("model.encoder", "model.bert.encoder"): t.pop(n) for n in list(t) if "layer.0" in n}),
    ),
    "a weight's weight": (lora, renamed("lora_B.weight", "lora_B.weight.weight")),
    "a bare parameter's weight": (
        lambda: LoHaConfig(r=2, target_modules=["query"]), renamed("hada_w1_a", "hada_w1_a.weight"),
    ),
    "a rotation without its weight": (
        lambda: OFTConfig(oft_block_size=8, target_modules=["query"]), renamed("oft_R.weight", "oft_R"),
    ),
    "AdaLoRA's matrices as LoRA's": (
        lambda: AdaLoraConfig(init_r=6, total_step=9, target_modules=["query"]), renamed("lora_A", "lora_A.weight"),
    ),
    "a rank beyond any float": (
        lambda: AdaLoraConfig(init_r=6, total_step=9, target_modules=["query"]),
        lambda _, c: c.update(init_r=10**400),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_peft_would_leave_out_or_choke_on_is_refused(
    client: httpx.Client, tiny_bert: Path, tmp_path: Path, what: str
) -> None:
    config, change = LEFT_OUT[what]
    folder = edited(make_kind("", "bert", tiny_bert, tmp_path / "a", config=config()), change)
    answer = client.put("/adapters/x", files=files_of(folder))
    assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_rejected"), (
        answer.text
    )
    assert answer.json()["problems"]


def base_table(tensors: dict[str, Tensor], config: dict[str, Any], base: Path) -> None:
    table = load_file(base / "model.safetensors")["embeddings.word_embeddings.weight"]
    tensors[f"{WORDS}.token_adapter.base_layer.weight"] = table


SERVED: dict[str, Callable[[], Any]] = {
    "AdaLoRA's alpha_pattern, which PEFT does not read": lambda: AdaLoraConfig(
        init_r=6, lora_alpha=5, total_step=9, target_modules=["query"], alpha_pattern={"query": 50}
    ),
    "AdaLoRA without an alpha": lambda: AdaLoraConfig(
        init_r=6, lora_alpha=0, total_step=9, target_modules=["query"]
    ),
    "tuned norms and a whole module": lambda: LNTuningConfig(
        target_modules=["LayerNorm"], modules_to_save=["pooler", "query"]
    ),
    "VeRA's own word for its biases": lambda: VeraConfig(
        r=4, bias="vera_only", target_modules=["query"]
    ),
    "a whole path stands above the layers": lambda: lora(
        target_modules=["encoder.layer.0.attention.self.query", "value"], layers_to_transform=[1]
    ),
    "an open count in an expression": lambda: lora(
        target_modules=r".*layer\.\d{1,}\.attention\.self\.query"
    ),
    "a reference back in an expression": lambda: lora(target_modules=r"(e)ncod\1r\.layer.*query"),
    "every layer by its whole path": lambda: lora(
        target_modules="|".join(f"encoder\\.layer\\.{i}\\.attention\\.self\\.query" for i in range(60))
    ),
    "PiSSA of more than the layer has": lambda: lora(r=40, init_lora_weights="pissa"),
    "block-diagonal, with a bias that only some have": lambda: lora(
        bias="all", lora_bias=True, target_modules=["query", "value"],
        use_bdlora=BdLoraConfig(target_modules_bd_a=["query"], target_modules_bd_b=["value"], nblocks=2),
    ),
    "rank over the layer's": lambda: lora(r=50, use_rslora=True),
    "a negative alpha": lambda: lora(lora_alpha=-3),
    "IA3 by an expression": lambda: IA3Config(
        target_modules=r".*(value|output\.dense)", feedforward_modules=r".*output\.dense"
    ),
    "OLoRA and KaSA, one after the other": lambda: lora(
        lora_alpha=16, init_lora_weights="olora", kasa_config=KasaConfig()
    ),
    "PiSSA and KaSA": lambda: lora(
        lora_alpha=16, init_lora_weights="pissa", kasa_config=KasaConfig()
    ),
    "a container saved whole": lambda: lora(modules_to_save=["attention.output", "encoder.layer.1.output"]),
}  # fmt: skip


@pytest.mark.parametrize("what", SERVED)
def test_what_peft_serves_is_served(
    client: httpx.Client, tiny_bert: Path, tmp_path: Path, what: str
) -> None:
    folder = make_kind("", "bert", tiny_bert, tmp_path / "a", config=SERVED[what]())
    put(client, "x", folder)
    same_as_peft(client, tiny_bert, folder)


def same_as_peft(client: httpx.Client, base: Path, folder: Path) -> None:
    body = {"inputs": TEXTS, "normalize": False}
    wanted = torch.stack(peft_answers(base, folder, [encode(base, t, 80) for t in TEXTS]))
    for step in ("merge", "unmerge"):
        got = torch.tensor(client.post("/embed?adapter=x", json=body).json())
        assert_close(got, wanted, **FP32)
        client.post(f"/adapters/x/{step}")
    client.delete("/adapters/x")


def test_adalora_after_its_ranks_were_given_out(
    client: httpx.Client, tiny_bert: Path, tmp_path: Path
) -> None:
    """Real training steps: some layers keep a part of their rank, some nothing at all."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AdaLoraConfig(
            init_r=6, target_r=2, total_step=12, tinit=1, tfinal=4, deltaT=1,
            target_modules=["query", "intermediate.dense"],
        )  # fmt: skip
        tuned = get_peft_model(AutoModel.from_pretrained(tiny_bert), config)
        randomise(tuned)
        optimiser = torch.optim.SGD(tuned.parameters(), lr=0.01)
        for step in range(10):
            tuned(**encode(tiny_bert, TEXTS[step % 2], 80)).last_hidden_state.pow(
                2
            ).mean().backward()
            optimiser.step()
            tuned.base_model.update_and_allocate(step)
            optimiser.zero_grad()
        tuned.save_pretrained(tmp_path, save_embedding_layers=False)
    ranks = {
        t.shape[0]
        for n, t in load_file(tmp_path / "adapter_model.safetensors").items()
        if "_A" in n
    }
    assert len(ranks) > 1
    put(client, "x", tmp_path)
    same_as_peft(client, tiny_bert, tmp_path)


def test_a_saved_table_beside_its_trained_rows_is_the_bases(
    client: httpx.Client, tiny_bert: Path, tmp_path: Path
) -> None:
    folder = make_kind("tokens", "bert", tiny_bert, tmp_path / "a")
    edited(folder, lambda t, c: base_table(t, c, tiny_bert))
    report = put(client, "x", folder)
    assert report["tensors"]["ignored"] == [f"{WORDS}.token_adapter.base_layer.weight"]
    same_as_peft(client, tiny_bert, folder)


@pytest.mark.parametrize("arch", ["bert", "distilbert", "albert", "modernbert"])
def test_the_class_that_peft_noted_tells_the_task(serve: Serve, tmp_path: Path, arch: str) -> None:
    """modules_to_save on a token classifier, task_type left None."""
    base = save_tiny_base(arch, tmp_path / "base")
    folder = make_kind("plain", arch, base, tmp_path / "a", task="TOKEN_CLS")
    edited(folder, lambda _, c: c.update(task_type=None, auto_mapping={
        "base_model_class": f"{arch.title()}ForTokenClassification",
        "parent_library": f"transformers.models.{arch}.modeling_{arch}",
    }))  # fmt: skip
    client = serve(model=str(base)).client
    assert put(client, "x", folder)["task"] == "tokens"


def test_a_pooler_that_only_the_file_has_is_its_heads(serve: Serve, tmp_path: Path) -> None:
    base = save_tiny_base("bert", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    pooler = [name for name in weights if name.startswith("pooler.")]
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(
            model, lora(task_type="SEQ_CLS", modules_to_save=["pooler", "classifier"])
        )
        randomise(tuned)
        tuned.save_pretrained(tmp_path / "a")
    save_file(
        {n: t for n, t in weights.items() if n not in pooler},
        base / "model.safetensors",
        {"format": "pt"},
    )
    client = serve(model=str(base)).client
    put(client, "x", tmp_path / "a")
    got = client.post("/classify?adapter=x", json={"inputs": TEXTS[0], "raw_scores": True}).json()
    with torch.inference_mode():
        wanted = tuned.eval()(**encode(base, TEXTS[0], 80)).logits[0]
    by_label = {e["label"]: e["score"] for e in got}
    assert_close(torch.tensor([by_label[f"LABEL_{i}"] for i in range(3)]), wanted, **FP32)


def test_a_base_of_some_size_leaves_expressions_their_time(
    minilm: Path, minilm_server: Any, tmp_path: Path
) -> None:
    """Folding takes seconds here; what an expression may take is counted by itself."""
    config = lora(init_lora_weights="pissa", target_modules=r".*\.(query|key|value|dense)")
    folder = make_kind("", "bert", minilm, tmp_path / "a", config=config)
    edited(folder, lambda _, c: c.update(base_model_name_or_path="all-MiniLM-L6-v2"))
    put(minilm_server.client, "big", folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_table_that_was_saved_rounded_is_served_rounded(
    client: httpx.Client, tiny_bert: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = make_kind("plain", "bert", tiny_bert, tmp_path / "a")
    table = load_file(tiny_bert / "model.safetensors")["embeddings.word_embeddings.weight"]
    edited(folder, lambda t, _: t.update({f"{WORDS}.weight": table.to(dtype)}))
    put(client, "x", folder)
    same_as_peft(client, tiny_bert, folder)


@pytest.mark.parametrize("config", [{"target_modules": "all-linear"}, {"bias": "all"}])
def test_what_was_trained_of_a_pooler_that_the_base_lacks_and_nothing_reads_is_set_aside(
    serve: Serve, tmp_path: Path, config: dict[str, Any]
) -> None:
    base = save_tiny_base("bert", tmp_path / "base")
    folder = make_kind("", "bert", base, tmp_path / "a", config=lora(**config))
    weights = load_file(base / "model.safetensors")
    kept = {n: t for n, t in weights.items() if not n.startswith("pooler.")}
    save_file(kept, base / "model.safetensors", {"format": "pt"})
    client = serve(model=str(base)).client
    ignored = put(client, "x", folder)["tensors"]["ignored"]
    assert ignored and all("pooler" in name for name in ignored)
    same_as_peft(client, base, folder)


def test_layers_are_counted_as_peft_counts_them_on_a_bare_modernbert(
    serve: Serve, tmp_path: Path
) -> None:
    """Its layers have nothing before "layers.0", which PEFT's expression for them asks for."""
    base = save_tiny_base("modernbert", tmp_path / "base")
    config = lora(target_modules=["embeddings.tok_embeddings", "Wi"], layers_to_transform=[0])
    folder = make_kind("", "modernbert", base, tmp_path / "a", config=config)
    client = serve(model=str(base)).client
    put(client, "x", folder)
    same_as_peft(client, base, folder)
    wi = "base_model.model.layers.0.mlp.Wi"
    edited(folder, lambda t, _: t.update({f"{wi}.lora_A.weight": torch.randn(4, 32),
                                          f"{wi}.lora_B.weight": torch.randn(128, 4)}))  # fmt: skip
    assert client.put("/adapters/x", files=files_of(folder)).status_code == 422


def test_a_classifiers_adapter_without_its_head_embeds(
    client: httpx.Client, tiny_bert: Path, tmp_path: Path
) -> None:
    """Trained on a classification model, task_type left None, its head neither trained nor
    saved.
    """
    folder = make_kind("plain", "bert", tiny_bert, tmp_path / "a")
    said = {
        "base_model_class": "BertForSequenceClassification",
        "parent_library": "transformers.models.bert.modeling_bert",
    }
    edited(folder, lambda _, c: c.update(auto_mapping=said))
    assert put(client, "x", folder)["task"] == "embed"
    same_as_peft(client, tiny_bert, folder)


def test_an_adapter_on_a_bases_own_head_is_told_by_the_class(serve: Serve, tmp_path: Path) -> None:
    """LoRA on the classifier that the base's checkpoint brings; task_type None."""
    plain = save_tiny_base("bert", tmp_path / "plain")
    base = tmp_path / "base"
    torch.manual_seed(2)
    model = AutoModelForSequenceClassification.from_pretrained(plain, num_labels=3)
    model.save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((plain / name).read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(model, lora(target_modules=["query", "classifier"]))
        randomise(tuned)
        tuned.save_pretrained(tmp_path / "a")
    edited(tmp_path / "a", lambda _, c: c.update(base_model_name_or_path=None))
    client = serve(model=str(base)).client
    assert put(client, "x", tmp_path / "a")["task"] == "classify"
    found = client.post("/classify?adapter=x", json={"inputs": TEXTS[0], "raw_scores": True}).json()
    with torch.inference_mode():
        wanted = tuned.eval()(**encode(base, TEXTS[0], 80)).logits[0]
    by_label = {e["label"]: e["score"] for e in found}
    assert_close(torch.tensor([by_label[f"LABEL_{i}"] for i in range(3)]), wanted, **FP32)
