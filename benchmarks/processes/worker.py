"""One library in a process of its own: texts -> vectors [N, H] of length 1, timed on demand.

    PYTHON benchmarks/processes/worker.py KIND < lines

Run by path in whichever environment has the library, so nothing of this repository is imported at
the top. The first line is the job (see Job); then each line names one of its requests, which is run
once. Answers, a JSON object a line: first the vectors of every request, then milliseconds. Every
library gets the texts, not tokens, and is used as its own documentation shows.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict


class Request(TypedDict):
    """adapters: names, one a text; None: the plain base."""

    texts: list[str]
    adapters: list[str] | None


class Job(TypedDict):
    """model: the base's folder. adapters: a folder of PEFT folders. onnx: where the export is
    kept.
    """

    model: str
    adapters: str
    onnx: str
    threads: int
    requests: dict[str, Request]


Run = Callable[[Request], Any]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr
    job: Job = json.loads(sys.stdin.readline())
    run = KINDS[sys.argv[1]](job)
    found = {name: _rows(run(request)) for name, request in job["requests"].items()}
    print(json.dumps({"vectors": found}), file=answers, flush=True)
    for line in sys.stdin:
        request = job["requests"][line.strip()]
        started = time.perf_counter()
        run(request)
        ms = 1000 * (time.perf_counter() - started)
        print(json.dumps({"ms": ms}), file=answers, flush=True)


def _rows(vectors: Any) -> list[list[float]]:
    return [[float(x) for x in row] for row in vectors]


def transformers(job: Job) -> Run:
    """All texts in one batch, padded to the longest."""
    model, tokenizer = _plain(job)
    return lambda request: _padded(model, tokenizer, request["texts"])


def peft(job: Job) -> Run:
    """PEFT's mixed batch: one adapter's name a row."""
    from peft import PeftModel

    base, tokenizer = _plain(job)
    first, *others = sorted(Path(job["adapters"]).iterdir())
    model = PeftModel.from_pretrained(base, first, adapter_name=first.name)
    for folder in others:
        model.load_adapter(folder, adapter_name=folder.name)
    model.eval()
    return lambda request: _padded(
        model, tokenizer, request["texts"], adapter_names=request["adapters"]
    )


def _plain(job: Job) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(job["model"], dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(job["model"])


def _padded(model: Any, tokenizer: Any, texts: list[str], **said: Any) -> Any:
    import torch
    from torch.nn.functional import normalize

    with torch.inference_mode():
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        mask = batch["attention_mask"]
        hidden = model(**batch, **said).last_hidden_state
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return normalize(pooled, dim=-1)


def sentence_transformers(job: Job) -> Run:
    """encode() as it is: batches of 32, sorted by length."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(job["model"], device="cpu")
    return lambda request: model.encode(request["texts"], show_progress_bar=False)


def onnxruntime(job: Job) -> Run:
    """All texts in one batch, padded; pooling is part of the graph."""
    import onnxruntime as ort
    from transformers import AutoTokenizer

    file = _exported(job)
    options = ort.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])

    def run(request: Request) -> Any:
        batch = tokenizer(request["texts"], padding=True, return_tensors="np")
        fed = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return session.run(None, fed)[0]

    return run


def onnxruntime_int8(job: Job) -> Run:
    """The same export after quantize_dynamic: weights in int8 per channel, activations per
    tensor.
    """
    from onnxruntime.quantization import quantize_dynamic

    plain = _exported(job)
    file = plain.with_suffix(".int8.onnx")
    if not file.exists():
        unfinished = file.with_suffix(".part")
        quantize_dynamic(plain, unfinished, per_channel=True)
        unfinished.rename(file)
    return onnxruntime({**job, "onnx": str(file)})


def openvino(job: Job) -> Run:
    """The ONNX file that onnxruntime runs, compiled for latency."""
    from openvino import Core
    from transformers import AutoTokenizer

    config = {"INFERENCE_NUM_THREADS": job["threads"], "PERFORMANCE_HINT": "LATENCY"}
    config |= {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = Core().compile_model(_exported(job), "CPU", config)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])

    def run(request: Request) -> Any:
        batch = tokenizer(request["texts"], padding=True, return_tensors="np")
        return compiled({name: batch[name] for name in ("input_ids", "attention_mask")})[0]

    return run


def fastembed(job: Job) -> Run:
    """embed() as it is, over the same ONNX file, which pools."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    folder = _exported(job).parent / "fastembed"
    folder.mkdir(exist_ok=True)
    for file in [_exported(job), *Path(job["model"]).glob("*.json")]:
        link = folder / ("model.onnx" if file.suffix == ".onnx" else file.name)
        if not link.exists():
            link.symlink_to(file)
    TextEmbedding.add_custom_model(
        "exported", PoolingType.DISABLED, False, ModelSource(hf="none/none"), 384, "model.onnx"
    )
    model = TextEmbedding("exported", specific_model_path=folder, threads=job["threads"])
    return lambda request: list(model.embed(request["texts"]))


def polylora(job: Job) -> Run:
    """Its mixed batch: one adapter's id a row."""
    import torch
    from polylora import PolyLoraConfig, PolyLoraModel

    base, tokenizer = _plain(job)
    folders = sorted(Path(job["adapters"]).iterdir())
    paths = [f"encoder.layer.{i}" for i in range(base.config.num_hidden_layers)]
    linears = [n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear)]
    targets = [name for name in linears if name.startswith(tuple(paths))]
    model = PolyLoraModel(base, PolyLoraConfig(len(folders) + 1, 8, targets)).eval()
    for folder in folders:
        model.load_adapter_from_disk(folder.name, folder)
    return lambda request: _padded(
        model, tokenizer, request["texts"], adapter_ids=request["adapters"]
    )


def _exported(job: Job) -> Path:
    """The ONNX file, made where it is not there."""
    file = Path(job["onnx"])
    if not file.exists():
        _export(job, file)
    return file


def _export(job: Job, file: Path) -> None:
    import torch
    from torch.nn.functional import normalize
    from transformers import AutoModel

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(job["model"], dtype=torch.float32)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask)
            mask = attention_mask[..., None].float()
            return normalize((hidden.last_hidden_state * mask).sum(1) / mask.sum(1), dim=-1)

    sizes = {0: torch.export.Dim("texts", min=1), 1: torch.export.Dim("tokens", min=2, max=512)}
    example = (torch.ones(3, 7, dtype=torch.long), torch.ones(3, 7, dtype=torch.long))
    names = ["input_ids", "attention_mask"]
    exported = torch.onnx.export(
        Embedder().eval(), example, dynamo=True, input_names=names,
        dynamic_shapes=dict.fromkeys(names, sizes), verbose=False,
    )  # fmt: skip
    if exported is None:
        raise ValueError("torch.onnx exported nothing")
    unfinished = file.with_suffix(".part")
    exported.save(unfinished, external_data=False)
    unfinished.rename(file)


def engine(job: Job, dtype: str = "float32") -> Run:
    """Ours, as the server runs it, without HTTP."""
    import asyncio

    import torch

    from app.assemble import CPU_BATCH_TOKENS, CPU_BATCHES
    from app.catalog.load import load_version, make_loader
    from app.engine.engine import Engine
    from app.engine.tokenizer import Cut, load_tokenizer, tokenize
    from app.model import kernel
    from app.model.base_files import find_base
    from app.model.load_encoder import DTYPES, load_encoder
    from app.model.machine import keep_memory
    from app.model.sequence import Sequence, Want

    keep_memory()
    kernel.prepare()
    files = find_base(job["model"], None)
    encoder = load_encoder(files, torch.device("cpu"), DTYPES[dtype])
    tokenizer = load_tokenizer(files.folder, encoder.vocabulary, encoder.type_vocabulary)
    cores = job["threads"]
    batches = min(CPU_BATCHES, cores)
    served = Engine(encoder, CPU_BATCH_TOKENS, None, batches, cores, batches)
    served.start()
    loader, cut, want = make_loader(served, tokenizer), Cut(encoder.max_length), Want("embedding")

    async def load(name: str) -> Any:
        return await load_version(loader, Path(job["adapters"]) / name, name, {}, allow_noop=False)

    named = {n for request in job["requests"].values() for n in request["adapters"] or []}
    versions = {name: asyncio.run(load(name)) for name in sorted(named)}

    async def answer(request: Request) -> Any:
        tokens = tokenize(tokenizer, request["texts"], cut)
        names: list[str | None] = request["adapters"] or [None] * len(tokens)
        sequences = [
            Sequence(t.ids, t.types, want, served.base if name is None else versions[name])
            for t, name in zip(tokens, names, strict=True)
        ]
        return (await served.run(sequences)).rows

    # Not asyncio.run: at its end CPython writes out the answer, all vectors, for an error message
    # that it drops (signal.getsignal), which took as long as the forward of a short text.
    loop = asyncio.new_event_loop()
    return lambda request: loop.run_until_complete(answer(request))


KINDS: dict[str, Callable[[Job], Run]] = {
    "transformers": transformers,
    "sentence-transformers": sentence_transformers,
    "onnxruntime": onnxruntime,
    "onnxruntime int8": onnxruntime_int8,
    "openvino": openvino,
    "fastembed": fastembed,
    "PEFT": peft,
    "polylora": polylora,
    "engine": engine,
    "engine int8": lambda job: engine(job, "int8"),
}

if __name__ == "__main__":
    main()
