# Everything a person or CI runs. `make compare` and `make test` are the two commands of the README.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# One thread a process: two processes of two threads each on two cores are several times slower.
export OMP_NUM_THREADS ?= 1
# The browser test runs wherever chromium is, and is required in CI.
FAST := not slow and not gpu $(if $(or $(shell command -v chromium),$(CI)),,and not browser)

# INSTRUCTIONS=avx2 or compatible: arithmetic that rounds as on a processor without AVX-512, or with SSE alone. (MKL on AMD
# heeds MKL_CBWR and not MKL_ENABLE_INSTRUCTIONS.)
ifeq ($(INSTRUCTIONS),avx2)
export MKL_CBWR := AVX2
export MKL_ENABLE_INSTRUCTIONS := AVX2
export ATEN_CPU_CAPABILITY := avx2
export ONEDNN_MAX_CPU_ISA := AVX2
else ifeq ($(INSTRUCTIONS),compatible)
export MKL_CBWR := COMPATIBLE
export ATEN_CPU_CAPABILITY := default
export ONEDNN_MAX_CPU_ISA := SSE41
else ifneq ($(INSTRUCTIONS),)
$(error INSTRUCTIONS must be avx2 or compatible; got $(INSTRUCTIONS))
endif

# `make test-seeds` runs every test whose outcome depends on random draws with so many seeds.
SEEDS ?= 20

# What `make compare` compares of networks; `--methods all` takes every registered method, and its time.
NETWORKS := map,laplace,deep_ensemble,sgld

.PHONY: compare test test-seeds test-slow test-gpu test-avalanche lint format wheel docs browser clean

compare: .venv/.runtime
	$(BIN)/bayeskit compare --data diabetes --methods exact,sgpr,svgp,coreset,$(NETWORKS),nuts,map+conformal --seeds 3 --out compare-diabetes
	$(BIN)/bayeskit compare --data digits-0-4 --ood digits-5-9 --methods svgp,$(NETWORKS),map+temperature,map+conformal --seeds 3 --out compare-digits

test: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "$(FAST)"

test-seeds: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "monte_carlo and not slow and not gpu" --seeds $(SEEDS) --tb line tests

test-slow: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow" --timeout 3600
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "properties" --hypothesis-profile many --timeout 3600

test-gpu: .venv/.test
	$(BIN)/python -m pytest -m "gpu" --timeout 600

# Avalanche brings much that nothing else needs, so its tests are a job of their own; BaaL's heuristics need some of it.
test-avalanche: .venv/.avalanche
	$(BIN)/python -m pytest tests/integrations/test_avalanche.py tests/integrations/test_baal_library.py

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: .venv/.test
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

docs: .venv/.docs
	$(BIN)/mkdocs build --strict

browser:
	command -v chromium || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }

clean:
	rm -rf .venv dist build site compare-diabetes compare-digits

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.runtime: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

.venv/.test: .venv/.runtime
	$(PIP) --editable '.[test]'
	touch $@

.venv/.avalanche: .venv/.test
	$(PIP) --editable '.[test,avalanche]'
	$(PIP) --no-deps baal structlog # BaaL asks for Jupyter too, which its heuristics do without
	touch $@

.venv/.docs: .venv/.runtime
	$(PIP) --editable '.[docs]'
	touch $@
