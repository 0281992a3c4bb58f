"""The app's routes, in the order in which they are tried."""

from __future__ import annotations

from app.api.routes import (
    adapters,
    audit,
    cohere,
    compose,
    health,
    inference,
    infinity,
    info,
    kserve,
    live,
    openai,
    rerank,
    root,
    tei,
    tei_root,
    tei_tokens,
    tei_vectors,
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
    tei_vectors,
    tei_tokens,
    tei_root,
    rerank,
    cohere,
    vllm,
    vllm_tokens,
    infinity,
    kserve,
    health,
    info,
    root,
)
ROUTES = (*DIALECTS, live, uploads, compose, vllm_adapters, adapters, versions, audit)
