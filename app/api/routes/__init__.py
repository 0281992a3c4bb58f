"""The app's routes, in the order in which they are tried."""

from __future__ import annotations

from app.api.routes import (
    adapters,
    audit,
    cohere,
    health,
    inference,
    infinity,
    kserve,
    openai,
    rerank,
    root,
    tei,
    uploads,
    versions,
    vllm,
    vllm_adapters,
    vllm_tokens,
)

# These stand below /a/{adapter}, too.
DIALECTS = (
    inference,
    openai,
    tei,
    rerank,
    cohere,
    vllm,
    vllm_tokens,
    infinity,
    kserve,
    health,
    root,
)
ROUTES = (*DIALECTS, uploads, vllm_adapters, adapters, versions, audit)
