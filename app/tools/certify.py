"""`bert-lora certify`: PEFT's own answers for some inputs, written beside the adapter as
golden.jsonl.

The reference is plain transformers and PEFT: nothing of this server's mathematics takes part, but
for reading which task, pooling and prompt the adapter has. The certificate is then checked here.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from app.adapters.files import CONFIG, GOLDEN
from app.adapters.sentence import Sentence
from app.adapters.values import Adapter, Task
from app.catalog.golden import MOST_LINES, TOLERANCE
from app.tools.workbench import adapter_folder, workbench

TEXTS = [
    "My card has not arrived yet, and I ordered it over a week ago.",
    "a masterpiece four years in the making",
    "no",
    "Angela Merkel visited the café in Zürich, didn't she?",
    "What is the exchange rate between krones and the yen? " * 6,
]
CLASSES: dict[Task, str] = {
    "embed": "AutoModel",
    "classify": "AutoModelForSequenceClassification",
    "tokens": "AutoModelForTokenClassification",
}


class CannotCertify(Exception):
    """There is no reference for this adapter, with the reason."""


def certify(folder: Path, model: str | None, inputs: list[str] | None) -> str:
    """Write folder/golden.jsonl; returns what to print.

    Raises CannotCertify, AdapterRejected (also where this server does not give PEFT's answers; then
    nothing is written), BaseRefused.
    """
    if not (folder / CONFIG).is_file():
        raise CannotCertify(f"{folder} has no {CONFIG}: PEFT, the reference, cannot load it")
    texts = TEXTS if inputs is None else inputs
    if not 0 < len(texts) <= MOST_LINES:
        raise CannotCertify(f"{len(texts)} inputs are given; a certificate has 1 to {MOST_LINES}")
    with workbench(model) as bench, adapter_folder(folder) as copy:
        (copy / GOLDEN).unlink(missing_ok=True)
        adapter = bench.load(copy).adapter
        sentence = bench.encoder.sentence(adapter)
        answers = _reference(bench.encoder.files.folder, folder, adapter, sentence, texts)
        kind = "embedding" if adapter.task == "embed" else "logits"
        lines = [
            json.dumps({"input": text, kind: answer.tolist(), "tolerance": TOLERANCE})
            for text, answer in zip(texts, answers, strict=True)
        ]
        (copy / GOLDEN).write_text("\n".join(lines) + "\n", encoding="utf-8")
        bench.load(copy)
        (folder / GOLDEN).write_bytes((copy / GOLDEN).read_bytes())
    return f"{folder / GOLDEN}: {len(texts)} answers of PEFT's, which this server gives, too"


@torch.inference_mode()
def _reference(
    base: Path, folder: Path, adapter: Adapter, sentence: Sentence, texts: list[str]
) -> list[Tensor]:
    """What transformers and PEFT answer, one text at a time."""
    try:
        import transformers
        from peft import PeftModel
    except ImportError:
        raise CannotCertify(
            "PEFT is not installed: pip install 'bert-lora-server[certify]'"
        ) from None
    labels = {} if adapter.head is None else {"num_labels": adapter.head.labels}
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    plain = getattr(transformers, CLASSES[adapter.task]).from_pretrained(base, **labels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned = PeftModel.from_pretrained(plain, folder).eval()
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CannotCertify(f"PEFT does not load {folder}: {error}") from None
    prompt = (sentence.prompts or {}).get(sentence.default_prompt or "", "")
    found = []
    for text in texts:
        whole = prompt + text if adapter.task == "embed" else text
        encoded = tokenizer(
            whole, truncation=True, max_length=sentence.max_length, return_tensors="pt"
        )
        output = tuned(**encoded)
        found.append(_pooled(output, sentence) if adapter.task == "embed" else output.logits[0])
    return found


def _pooled(output: Any, sentence: Sentence) -> Tensor:
    rows: Tensor = output.last_hidden_state[0]
    match sentence.pooling:
        case "pooler":
            pooled: Tensor = output.pooler_output[0]
        case "cls":
            pooled = rows[0]
        case "last":
            pooled = rows[-1]
        case "max":
            pooled = rows.amax(0)
        case "mean":
            pooled = rows.mean(0)
        case None:
            raise CannotCertify("neither adapter nor base says how token states become a vector")
        case _:
            assert_never(sentence.pooling)
    pooled = pooled[: sentence.truncate_dim]
    return F.normalize(pooled, dim=0) if sentence.normalize else pooled
