# The server with the embedded base inside.
#   docker build -t bert-lora-server .                                   PyTorch with CUDA, from PyPI
#   docker build --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu .     CPU only, a tenth
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# All that is installed is pinned with its hash (make lock), but for PyTorch's CPU build, which comes from
# PyTorch's own index by its version.
WORKDIR /src
COPY requirements requirements
# hadolint ignore=DL3013
RUN if [ -n "$TORCH_INDEX_URL" ]; then \
        pip install --no-deps torch==2.13.0 --index-url "$TORCH_INDEX_URL" \
        && pip install --no-deps --require-hashes -r requirements/cpu.lock; \
    else \
        pip install --no-deps --require-hashes -r requirements/gpu.lock; \
    fi
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY bert_lora bert_lora
RUN pip install --no-deps --no-build-isolation . \
    && python -c 'from app.model.embedded import embedded_base; embedded_base()' \
    && pip uninstall -y pip setuptools
# The CPU's kernel, for any x86-64-v3 and any v4: a start would spend 7 to 9 s of CPU on compiling it, on
# each one, since the root file system is read-only. And what transformers says of the embedded base, another
# 2 to 4 s. From /, so that it is the installed package's.
WORKDIR /
RUN python -m app.model.compiled && python -m app.tools.keep

FROM python:3.11-slim-bookworm
ARG TORCH_INDEX_URL
# Triton (torch brings it with CUDA) compiles its link to the driver with a C compiler when a GPU is first used:
# only there is the driver. The CPU image does without.
# hadolint ignore=DL3008
RUN if [ -z "$TORCH_INDEX_URL" ]; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --uid 10001 --create-home serve && install -d -o serve /data
COPY --from=build /opt/venv /opt/venv
WORKDIR /srv
COPY adapters adapters
# TRITON_CACHE_DIR: what Triton compiles is mapped executable, and /tmp is mounted noexec (docker-compose.yml);
# on the volume it is kept for the next start as well.
# XDG_CACHE_HOME: there a start keeps what it has worked out about another base, for the next.
# BERT_LORA_DRAIN_DELAY: a balancer that looks at /readyz every 2 s, twice before it believes it, still sends for 4.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/hub \
    TRITON_CACHE_DIR=/data/triton \
    XDG_CACHE_HOME=/data/xdg \
    BERT_LORA_DRAIN_DELAY=5 \
    BERT_LORA_HOST=0.0.0.0 \
    BERT_LORA_STORE=/data \
    BERT_LORA_CACHE_DIR=/data/cache
USER 10001
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=90s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('BERT_LORA_PORT') or 8080}/readyz\", timeout=4)"]
CMD ["bert-lora", "serve"]
