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
RUN pip install --no-deps --no-build-isolation . \
    && python -c 'from app.model.embedded import embedded_base; embedded_base()' \
    && pip uninstall -y pip setuptools

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --create-home serve && install -d -o serve /data
COPY --from=build /opt/venv /opt/venv
WORKDIR /srv
COPY adapters adapters
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/hub \
    BERT_LORA_HOST=0.0.0.0 \
    BERT_LORA_STORE=/data
USER 10001
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=90s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('BERT_LORA_PORT') or 8080}/readyz\", timeout=4)"]
CMD ["bert-lora", "serve"]
