"""Independent references: plain transformers, PEFT itself, a hand merge in float64.

Nothing here imports the server's mathematics. The tolerance is written once.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

FP32 = {"rtol": 0.0, "atol": 1e-5}

SENTENCES = [
    "How do I locate my card?",
    "I still have not received my new card, I ordered over a week ago.",
    "a masterpiece four years in the making.",
    "it's so laddish and juvenile, only teenage boys could possibly find it funny",
    "what is the exchange rate between krones and the yen",
    "good",
    "The concert starts at eight; bring an umbrella, the weather report looks grim today.",
    "please tell me why my payment was declined at the restaurant last night when the balance "
    "was more than enough to cover the bill and the tip together",
]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different texts of 1 to some 60 words."""
    rng = random.Random(seed)
    words = " ".join(SENTENCES).split()
    return [" ".join(rng.choices(words, k=rng.randint(1, 60))) for _ in range(count)]


def encode(folder: Path, text: str | tuple[str, str], max_length: int) -> dict[str, Tensor]:
    """One text, or a pair, as transformers' own tokenizer gives it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = text if isinstance(text, tuple) else (text,)
    return dict(tokenizer(*parts, truncation=True, max_length=max_length, return_tensors="pt"))


@torch.inference_mode()
def mean_embedding(model: Any, inputs: dict[str, Tensor], normalize: bool = True) -> Tensor:
    """Mean of the last hidden state of one text; [H]."""
    row = model(**inputs).last_hidden_state[0].mean(0)
    return F.normalize(row, dim=0) if normalize else row


def plain_embeddings(folder: Path, texts: list[str], max_length: int = 256) -> Tensor:
    """One text at a time through the untouched model; [N, H]."""
    model = AutoModel.from_pretrained(folder).eval()
    return torch.stack([mean_embedding(model, encode(folder, t, max_length)) for t in texts])


def make_adapter(
    base: Path,
    folder: Path,
    seed: int,
    *,
    labels: int | None = None,
    scale: float = 1.0,
    **lora: Any,
) -> Path:
    """A PEFT adapter with random A and B, saved by PEFT. labels: with a classification head.

    B's spread is chosen so that outputs move visibly and stay finite.
    """
    torch.manual_seed(seed)
    config = LoraConfig(
        **{"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"], **lora},
        task_type=TaskType.SEQ_CLS if labels else None,
    )
    model = (
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
        if labels
        else AutoModel.from_pretrained(base)
    )
    tuned = get_peft_model(model, config)
    randomise(tuned, scale)
    tuned.peft_config["default"].base_model_name_or_path = "a/base"
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


def randomise(tuned: Any, scale: float = 1.0) -> None:
    """Give every trainable tensor random values."""
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02 * scale)
            elif "modules_to_save" in name and parameter.dim() > 1:
                parameter.normal_(0, 0.2)
            elif "modules_to_save" in name:
                parameter.normal_(0, 0.1)


def peft_embeddings(
    base: Path, adapter: Path, texts: list[str], max_length: int = 256, merged: bool = False
) -> Tensor:
    """PEFT's own answer, one text at a time; [N, H]."""
    tuned = PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter).eval()
    model = tuned.merge_and_unload() if merged else tuned
    return torch.stack([mean_embedding(model, encode(base, t, max_length)) for t in texts])


@torch.inference_mode()
def peft_logits(
    base: Path, adapter: Path, labels: int, texts: list[Any], max_length: int = 256
) -> Tensor:
    """PEFT's own logits through the architecture's own classification model; [N, L]."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    tuned = PeftModel.from_pretrained(model, adapter).eval()
    return torch.stack([tuned(**encode(base, t, max_length)).logits[0] for t in texts])


def files_of(adapter: Path) -> dict[str, tuple[str, bytes]]:
    """For httpx: a PEFT folder as a multipart form."""
    names = ("adapter_model.safetensors", "adapter_config.json", "config.json", "golden.jsonl")
    return {n: (n, (adapter / n).read_bytes()) for n in names if (adapter / n).exists()}


def put(client: Any, name: str, adapter: Path, **query: Any) -> Any:
    """PUT a PEFT folder; the answer's JSON."""
    answer = client.put(f"/adapters/{name}", files=files_of(adapter), params=query)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()
