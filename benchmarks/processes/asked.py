"""What every peer is asked: texts whose tokens can be counted, and adapters that PEFT and we
load.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from benchmarks.load.arrivals import LONGEST, SHORTEST, WORDS
from benchmarks.processes.worker import Request

SPECIAL = 2  # [CLS] and [SEP]
ONE_TOKENS = 32
RANK = 8
TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def requests(texts: int, adapters: list[str] | None) -> dict[str, Request]:
    """By name: one with so many texts, one with a single text; the same for everybody.

    The texts' adapters are dealt evenly, at random.
    """
    rng = random.Random(0)
    many = [_text(rng, rng.randint(SHORTEST, LONGEST)) for _ in range(texts)]
    one = [_text(rng, ONE_TOKENS)]
    dealt = None
    if adapters is not None:
        dealt = list(itertools.islice(itertools.cycle(adapters), texts))
        random.Random(1).shuffle(dealt)
    return {
        f"{texts} texts": {"texts": many, "adapters": dealt},
        "1 text": {"texts": one, "adapters": dealt and dealt[:1]},
    }


def _text(rng: random.Random, tokens: int) -> str:
    return " ".join(rng.choices(WORDS.split(), k=tokens - SPECIAL))


def lengths(model: Path, texts: list[str]) -> list[int]:
    """In tokens, special ones included."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [len(e.ids) for e in tokenizer.encode_batch(texts)]


def make_adapters(model: Path, folder: Path, count: int) -> list[str]:
    """PEFT folders of random LoRA on every Linear of a BERT's layers; their names."""
    config = json.loads((model / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
    }
    said = {
        "peft_type": "LORA", "task_type": "FEATURE_EXTRACTION", "r": RANK, "lora_alpha": 2 * RANK,
        "target_modules": TARGETS, "inference_mode": True, "bias": "none",
        "base_model_name_or_path": str(model),
    }  # fmt: skip
    names = [f"a{i:02}" for i in range(count)]
    for seed, name in enumerate(names):
        rng, tensors = np.random.default_rng(seed), {}
        for layer in range(config["num_hidden_layers"]):
            for module, (out, in_) in shapes.items():
                path = f"base_model.model.encoder.layer.{layer}.{module}"
                a = rng.standard_normal((RANK, in_), np.float32) / in_**0.5
                b = rng.standard_normal((out, RANK), np.float32) * np.float32(0.01)
                tensors[f"{path}.lora_A.weight"] = a.astype(np.float32)
                tensors[f"{path}.lora_B.weight"] = b
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "adapter_model.safetensors", {"format": "pt"})
        (folder / name / "adapter_config.json").write_text(json.dumps(said))
    return names
