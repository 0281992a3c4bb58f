"""Are the card's answers right: against PEFT in float64 on the CPU, and alone as in a batch.

Every kind of adapter that the tests know how to make, and LoRA of four ranks, on the embedded base
and on a bert-base of random weights.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from app.catalog.load import Loader, load_version, make_loader
from app.engine.engine import Engine
from app.engine.tokenizer import Cut, TextTokenizer, load_tokenizer, tokenize
from app.model.base_files import BaseFiles, find_base
from app.model.encoder import Encoder
from app.model.load_encoder import DTYPES, load_encoder
from app.model.sequence import Sequence as Tokens
from app.model.sequence import Want
from app.model.version import Version
from benchmarks.gpu.card import Bench, base
from tests.kinds import make_kind
from tests.oracles import sentences

KINDS = (
    "plain", "all-linear", "rslora", "patterns", "dora", "dora, rslora, patterns", "embedding, dora",
    "lora_bias", "bias all", "norms whole", "words whole", "a linear whole", "tokens", "pissa",
    "loha", "lokr", "ia3", "vera", "fourierft", "oft", "adalora", "ln tuning", "trainable tokens",
)  # fmt: skip
RANKS = (1, 17, 64, 256)
CPU = torch.device("cpu")
CALMED, CALM = ("lora_B", "lora_embedding_B", "hada_w1_a", "oft_R", "modules_to_save.bias"), 0.1
WANT = Want("embedding", normalize=False)
BATCH = 512


def measure(bench: Bench) -> None:
    for name in ("minilm", "bert-base"):
        with tempfile.TemporaryDirectory() as folder:
            files = base(bench, name, f"{folder}/base")
            places = make_all(bench, name, files, Path(folder))
            compare(bench, name, files, places)


def make_all(bench: Bench, name: str, files: BaseFiles, folder: Path) -> dict[str, Path]:
    """Adapters as PEFT saves them. What this machine's PEFT cannot make is said."""
    chosen = KINDS if name == "minilm" and not bench.small else KINDS[:5]
    configs = {f"rank {r}": LoraConfig(r=r, target_modules="all-linear") for r in RANKS}
    places = {}
    for kind in (*configs, *chosen):
        place = folder / kind.replace(", ", "-").replace(" ", "-")
        try:
            make_kind(kind, "bert", files.folder, place, config=configs.get(kind))
            places[kind] = calmed(place)
        except Exception as error:
            bench.add(f"{name}/not made/{kind}", f"{type(error).__name__}: {error}"[:200])
    return places


def calmed(place: Path) -> Path:
    """The same adapter, its effect of a trained one's size: the tests' kinds move the embedded base
    three times its own length, where rounding grows a thousandfold, whoever computes."""
    file = place / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if any(part in name for part in CALMED):
            tensors[name] = tensors[name] * CALM
    save_file(tensors, file, {"format": "pt"})
    return place


def compare(bench: Bench, name: str, files: BaseFiles, places: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(find_base(None, None).folder, 30522, 2)
    tokens = tokenize(tokenizer, sentences(4 if bench.small else 12), Cut(256))
    all_ids = [t.ids for t in tokens]
    wanted = {"base": plain_rows(files, None, all_ids)}
    for kind, place in places.items():
        try:
            wanted[kind] = plain_rows(files, place, all_ids)
        except Exception as error:
            bench.add(f"{name}/no oracle/{kind}", f"{type(error).__name__}: {error}"[:200])
    for dtype in ("float32", "bfloat16", "float16"):
        torch.backends.cuda.matmul.allow_tf32 = False
        encoder = load_encoder(files, bench.device, DTYPES[dtype])
        loaded = load_all(
            bench, name, encoder, tokenizer, {k: places[k] for k in wanted if k in places}
        )
        results = {kind: distances(encoder, v, all_ids, wanted[kind]) for kind, v in loaded.items()}
        theirs = {
            kind: by_peft(bench, files, places.get(kind), all_ids, dtype, wanted[kind])
            for kind in loaded
        }
        bench.add(f"{name}/{dtype}", summary(results, theirs, wanted))
        bench.add(f"{name}/{dtype} alone", alone(bench, encoder, list(loaded.values()), dtype))


@torch.inference_mode()
def plain_rows(
    files: BaseFiles,
    adapter: Path | None,
    all_ids: list[list[int]],
    dtype: torch.dtype = torch.float64,
    device: torch.device = CPU,
) -> Tensor:
    """PEFT's own answer, a text at a time: means, not normalised; float64 [N, H]."""
    model: Any = AutoModel.from_pretrained(files.folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    model.to(device, dtype).eval()
    rows = [
        model(input_ids=torch.tensor([ids], device=device)).last_hidden_state[0].double().mean(0)
        for ids in all_ids
    ]
    return torch.stack(rows).cpu()


def by_peft(
    bench: Bench,
    files: BaseFiles,
    adapter: Path | None,
    all_ids: list[list[int]],
    dtype: str,
    wanted: Tensor,
) -> dict[str, float]:
    """How far PEFT itself is from float64, on this card in this dtype: what the dtype alone costs."""
    try:
        return distance(plain_rows(files, adapter, all_ids, DTYPES[dtype], bench.device), wanted)
    except Exception:  # not every method of theirs runs in half precision
        return {}


def load_all(
    bench: Bench, name: str, encoder: Encoder, tokenizer: TextTokenizer, places: dict[str, Path]
) -> dict[str, Version]:
    """As an upload is loaded, measuring included."""
    engine = Engine(encoder, 16_384, None)
    engine.start()
    loader: Loader = make_loader(engine, tokenizer)
    loaded: dict[str, Version] = {"base": encoder.version}
    for kind, place in places.items():
        try:
            loaded[kind] = asyncio.run(load_version(loader, place, kind, {}, allow_noop=True))
        except Exception as error:
            bench.add(
                f"{name}/not loaded/{encoder.dtype}/{kind}",
                f"{type(error).__name__}: {error}"[:200],
            )
    engine.stop()
    return loaded


def run(encoder: Encoder, pairs: Sequence[tuple[list[int], Version]]) -> Tensor:
    rows = encoder.run([Tokens(ids, [0] * len(ids), WANT, version) for ids, version in pairs])
    return torch.stack(rows).double()


def distances(
    encoder: Encoder, version: Version, all_ids: list[list[int]], wanted: Tensor
) -> dict[str, float]:
    return distance(run(encoder, [(ids, version) for ids in all_ids]), wanted)


def distance(rows: Tensor, wanted: Tensor) -> dict[str, float]:
    off = (rows - wanted).norm(dim=1) / wanted.norm(dim=1)
    cosine = torch.nn.functional.cosine_similarity(rows, wanted)
    return {"relative": float(f"{off.max():.2e}"), "cosine": round(float(cosine.min()), 7)}


def summary(
    results: dict[str, dict[str, float]],
    theirs: dict[str, dict[str, float]],
    wanted: dict[str, Tensor],
) -> dict[str, Any]:
    """The worst first; with how far each adapter is from the base, so that it is known to count."""
    moved = {
        kind: round(float((rows - wanted["base"]).norm() / wanted["base"].norm()), 4)
        for kind, rows in wanted.items()
    }
    return {
        "worst relative": max(r["relative"] for r in results.values()),
        "least cosine": min(r["cosine"] for r in results.values()),
        "PEFT's worst relative": max(r["relative"] for r in theirs.values() if r),
        "PEFT's least cosine": min(r["cosine"] for r in theirs.values() if r),
        "kinds": {
            kind: {**r, "moves": moved[kind], "PEFT's": theirs[kind].get("relative")}
            for kind, r in results.items()
        },
    }


def alone(bench: Bench, encoder: Encoder, through: list[Version], dtype: str) -> dict[str, Any]:
    """Each of some texts alone, against the same in a batch through all versions."""
    count = 24 if bench.small else BATCH
    tokenizer = load_tokenizer(find_base(None, None).folder, 30522, 2)
    tokens = tokenize(tokenizer, sentences(count, seed=1), Cut(256))
    pairs = [(t.ids, through[i % len(through)]) for i, t in enumerate(tokens)]
    together = run(encoder, pairs)
    again = run(encoder, pairs)
    some = range(0, count, 4)
    single = torch.cat([run(encoder, [pairs[i]]) for i in some])
    apart = (single - together[some]).norm(dim=1) / single.norm(dim=1)
    cosine = torch.nn.functional.cosine_similarity(single, together[some])
    return {
        "dtype": dtype,
        "texts": count,
        "compared": len(some),
        "the same bits": int((single == together[some]).all(dim=1).sum()),
        "worst relative": float(f"{apart.max():.2e}"),
        "least cosine": round(float(cosine.min()), 7),
        "the batch twice, the same bits": bool(torch.equal(together, again)),
    }
