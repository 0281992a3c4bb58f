"""Store, base, tokenizer, engine, installer, in order, from the settings: what a server serves
with.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import torch

from app.adapters.receiving.source import Sources
from app.api import json_text
from app.catalog.compositions import Compositions
from app.catalog.fetch import Fetcher
from app.catalog.install import Installer
from app.catalog.load import make_loader
from app.catalog.names import Names
from app.catalog.pointer import valid_name
from app.catalog.registry import Registry
from app.catalog.residents import Residents
from app.catalog.store import Store
from app.engine.engine import Engine
from app.engine.tokenizer import TextTokenizer, load_tokenizer
from app.inference.gateway import Gateway
from app.inference.metrics import Metrics
from app.inference.quota import Quotas
from app.inference.runtime import Runtime
from app.inference.tasks import Tasks, TasksRefused, read_tasks
from app.inference.watched import watch
from app.model import kernel, machine
from app.model.base_files import BaseFiles, BaseRefused, find_base
from app.model.embedded import EmbeddedBaseMissing
from app.model.encoder import Encoder
from app.model.fast_paths import warn
from app.model.load_encoder import DTYPES, load_encoder, load_in_half
from app.settings import Settings, listed

CPU_BATCH_TOKENS = 1024  # docs/decisions/0003: more gains nothing and costs latency
CPU_BATCHES = 4  # at the same time, where there are as many cores (docs/decisions/0006)
GPU_BATCH_TOKENS = 16_384
GPU_BATCHES = 2  # the next is packed and launched while the card computes (docs/decisions/0031)
SUMS_SHARE = 8  # weighted sums may take this part of what adapters may, beside them


class StartRefused(Exception):
    """The server cannot start, with the reason in words."""


def assemble(settings: Settings, metrics: Metrics, store: Store) -> tuple[Runtime, Installer]:
    """What answers, and what changes adapters; its engine is still to be started, its names loaded.

    Blocks, for seconds. Raises StartRefused.
    """
    encoder, tokenizer = _base(settings)
    tasks = _tasks(settings.tasks_file, encoder.base.has_pooler)
    engine = _engine(settings, encoder)
    engine.on_forward = metrics.forward
    loader = make_loader(engine, tokenizer, metrics.loads.observe)
    budget = settings.adapter_memory_bytes
    registry = Registry(
        Residents(machine.free_memory(encoder.device) // 2 if budget is None else budget)
    )
    fetcher = Fetcher(store, registry, loader)
    names = Names(store, registry, fetcher, always=_names_of(encoder.files))
    installer = Installer(
        store,
        registry,
        loader,
        fetcher,
        names,
        settings.max_adapter_bytes,
        settings.merge_memory_bytes,
        settings.keep_versions,
        Sources(tuple(map(Path, listed(settings.source_dirs))), settings.allow_hub),
    )
    compositions = Compositions(encoder, registry.residents.budget_bytes // SUMS_SHARE)
    runtime = Runtime(
        engine,
        tokenizer,
        registry,
        fetcher,
        names,
        compositions,
        metrics,
        settings.max_client_batch,
        tasks,
        Quotas(replicas=settings.replicas),
    )
    watch(runtime)
    if settings.gateway_metrics:
        metrics.registry.register(Gateway(runtime))
    return runtime, installer


def _names_of(files: BaseFiles) -> frozenset[str]:
    """An adapter may be called as the base is, and goes before it (inference/choose.py)."""
    return frozenset(filter(valid_name, (files.id, files.id.rpartition("/")[2])))


def _tasks(path: Path | None, has_pooler: bool) -> Tasks:
    """Raises StartRefused."""
    try:
        tasks = read_tasks(path) if path else {}
    except TasksRefused as error:
        raise StartRefused(f"TASKS_FILE: {error}") from None
    if not has_pooler and any(task.pooling == "pooler" for task in tasks.values()):
        raise StartRefused(f"TASKS_FILE: {path}: a pooling is pooler, and this base has none")
    return tasks


def _base(settings: Settings) -> tuple[Encoder, TextTokenizer]:
    _refuse_int8_on_a_gpu(settings)
    device = _device(settings.device)
    torch.backends.cuda.matmul.allow_tf32 = settings.tf32
    torch.set_num_threads(1)  # on all threads but the model's: OpenMP sleeps where teams are many
    compiling = threading.Thread(target=_compile)  # seconds, at an installation's first start
    compiling.start()
    try:
        files = find_base(settings.model, settings.model_revision)
        encoder = _load(files, device, settings.dtype)
        tokenizer = load_tokenizer(files.folder, encoder.vocabulary, encoder.type_vocabulary)
    except (BaseRefused, EmbeddedBaseMissing) as error:
        raise StartRefused(str(error)) from error
    compiling.join()
    why = machine.gpu_why_not() if settings.device == "auto" else None
    if why is not None:
        warn("device", f"{why}: the CPU serves")
        encoder.slow_paths = {**encoder.slow_paths, "device": f"{why}: the CPU serves"}
    return encoder, tokenizer


def _load(files: BaseFiles, device: torch.device, dtype: str) -> Encoder:
    if dtype == "auto" and device.type == "cuda":
        return load_in_half(files, device)
    return load_encoder(files, device, DTYPES["float32" if dtype == "auto" else dtype])


def _compile() -> None:
    with contextlib.suppress(Exception):  # load_encoder tries the kernel, and says why it fails
        kernel.prepare()
    json_text.prepare()


def _engine(settings: Settings, encoder: Encoder) -> Engine:
    on_cpu, cores = encoder.device.type == "cpu", machine.cores()
    batches = _batches(encoder.dtype, cores) if on_cpu else GPU_BATCHES
    return Engine(
        encoder,
        settings.max_batch_tokens or (CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS),
        settings.max_queue_tokens,
        threads=batches,
        cores=cores,
        parts=batches if on_cpu else 1,
    )


def _batches(dtype: torch.dtype, cores: int) -> int:
    """How many run at the same time on a CPU. A product in int8 is one core's."""
    return cores if dtype == torch.int8 else min(CPU_BATCHES, cores)


def _refuse_int8_on_a_gpu(settings: Settings) -> None:
    """Before the GPU is looked for: a machine without one is told both at once. Raises
    StartRefused."""
    on_gpu = settings.device.startswith("cuda") or (
        settings.device == "auto" and torch.cuda.is_available()
    )
    if settings.dtype == "int8" and on_gpu:
        raise StartRefused(
            f"DTYPE=int8 is for CPUs, and DEVICE={settings.device} is a GPU: DEVICE=cpu, or "
            "DTYPE=auto, which is half precision there"
        )


def _device(name: str) -> torch.device:
    """Raises StartRefused for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise StartRefused(f"DEVICE={name} is no device: auto, cpu, cuda or cuda:n") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        why = machine.gpu_why_not()
        sees = f"torch sees {torch.cuda.device_count()} GPUs"
        raise StartRefused(f"DEVICE={name}, but {sees}" + (f": {why}" if why else ""))
    return device
