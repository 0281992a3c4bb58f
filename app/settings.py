"""One frozen Settings: from BERT_LORA_… variables and the flags of `bert-lora serve`.

Only serve.py, main.py and assemble.py read it; everything else gets plain values. Imports nothing
heavy, so that --help is quick.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "BERT_LORA_"
OF_CLIENTS = ("BERT_LORA_URL", "BERT_LORA_API_KEY")  # which the other commands read


class SettingsRefused(Exception):
    """A variable or flag that is unknown or has an impossible value."""


class Settings(BaseSettings):
    """What one server is started with. Sizes in bytes or tokens, as their names say."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
    )

    model: str | None = Field(
        None, description="Hub id or folder of the base; unset: the embedded all-MiniLM-L6-v2."
    )
    model_revision: str | None = Field(
        None, description="Commit, tag or branch of a hub id; a commit pins the base."
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto (the GPU where there is one), cpu, cuda or cuda:n.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="The base's and the adapters' number format. auto: float32 on a CPU; on a GPU "
        "float16, or bfloat16 where the base overflows in it. int8: on a CPU, adapters in float32.",
    )
    tf32: bool = Field(
        False,
        description="Whether DTYPE=float32 on a GPU multiplies in TF32: faster, and three digits.",
    )
    tasks_file: Path | None = Field(
        None, description="JSON file of tasks: each a name's adapter, prompt and pooling."
    )
    adapters_dir: Path = Field(
        Path("adapters"),
        description="Watched folder of PEFT folders, one a name; only read, may be missing.",
    )
    store: Annotated[str, BeforeValidator(os.fspath)] = Field(
        "data",
        description="Where uploaded versions and names live: a folder, or for many servers one "
        "bucket: s3://bucket/prefix, gs://… or az://….",
    )
    cache_dir: Path = Field(
        Path("cache"),
        description="Folder on this machine for what comes from a STORE in a bucket, and goes.",
    )
    cache_bytes: int = Field(
        8 << 30, ge=0, description="Size of the versions there; the least recently used go first."
    )
    replicas: int = Field(
        1, ge=1, description="Servers that share the load: each gives its part of the rate limits."
    )
    keep_versions: int = Field(
        64, ge=1, description="Versions of a name that are kept, for @version and rollback."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on.")
    max_batch_tokens: int | None = Field(
        None, ge=1, description="Tokens of one forward pass; unset: 1024 on a CPU, 16384 on a GPU."
    )
    max_queue_tokens: int | None = Field(
        None, ge=1, description="Tokens that may wait; above: 429. Unset: what drains in 5 seconds."
    )
    max_client_batch: int = Field(2048, ge=1, description="Inputs of one request; above: 413.")
    max_body_bytes: int = Field(
        16 << 20, ge=1, description="Size of a request's body, uploads aside; above: 413."
    )
    max_adapter_bytes: int = Field(
        512 << 20, ge=1, description="Size of an upload, and of what it unpacks to; above: 413."
    )
    adapter_memory_bytes: int | None = Field(
        None,
        ge=0,
        description="Memory for adapters; what is used least recently is loaded again from the "
        "store when asked for. Unset: half of what is free at start.",
    )
    merge_memory_bytes: int = Field(
        2 << 30, ge=0, description="Memory for the copies that merged adapters keep; above: 507."
    )
    drain_delay: float = Field(
        0,
        ge=0,
        description="Seconds after SIGTERM in which /readyz is 503 and requests are still "
        "accepted, for balancers to look elsewhere.",
    )
    drain_seconds: float = Field(
        30, ge=0, description="After SIGTERM and the delay, for what is in flight to be answered."
    )
    max_forward_seconds: float = Field(
        60, gt=0, description="Without progress of a forward, before the process ends itself."
    )
    api_keys: SecretStr | None = Field(
        None, description="Inference keys, comma-separated; unset: nobody needs one."
    )
    admin_keys: SecretStr | None = Field(
        None, description="Keys that may change adapters; unset: whoever can reach a loopback HOST."
    )
    api_keys_file: Path | None = Field(None, description="More inference keys, one a line.")
    admin_keys_file: Path | None = Field(None, description="More admin keys, one a line.")
    metrics_adapters: int = Field(
        200, ge=0, description="The busiest adapters, which /metrics names; the rest are one."
    )
    gateway_metrics: bool = Field(
        False,
        description="Whether /metrics also has what Kubernetes' inference gateway reads (vllm:…).",
    )
    source_dirs: str = Field(
        "", description='Folders that PUT {"source": "/folder"} may read below, comma-separated.'
    )
    allow_hub: bool = Field(
        False, description='Whether PUT {"source": "hf:org/repo@revision"} may download.'
    )
    cors_origins: str = Field(
        "",
        description="Origins of pages that may ask from a browser, comma-separated; unset: none.",
    )
    page: bool = Field(
        True, description="Whether a browser gets the page at /; false: it is led to /docs."
    )
    tracing: bool = Field(
        False,
        description="Whether spans are sent, as OpenTelemetry's own variables (OTEL_…) say where.",
    )
    access_log: bool = Field(
        False, description="Whether each request is a line in the log; never what it sent."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="text, or json: one object a line."
    )


def read_settings(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Flags over variables over defaults. Raises SettingsRefused, naming the nearest variable."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in environ:
        if name.upper().startswith(PREFIX) and name.upper() not in (*known, *OF_CLIENTS):
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)
            raise SettingsRefused(f"{name} is not a setting; did you mean {near[0]}?")
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        faults = [f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors()]
        raise SettingsRefused("; ".join(faults)) from None
    if environ.get("BERT_LORA_API_KEY") and not _has_keys(settings):
        raise SettingsRefused(
            "BERT_LORA_API_KEY is the key that clients send, and this server would ask for none; "
            "did you mean BERT_LORA_API_KEYS?"
        )
    return settings


def _has_keys(settings: Settings) -> bool:
    keys = (settings.api_keys, settings.admin_keys)
    return any((*keys, settings.api_keys_file, settings.admin_keys_file))


def listed(text: str) -> list[str]:
    """The parts of a comma-separated setting."""
    return [part.strip() for part in text.split(",") if part.strip()]
