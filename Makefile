PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SERVERS := .servers

.DEFAULT_GOAL := help
.PHONY: help setup servers demo check test format protos clean

# Tests of what computes and decides, without processes, servers or training.
QUICK := $(wildcard tests/cli/test_cli.py tests/codes/test_*.py tests/scheduling/test_*.py \
  tests/models/test_bundle.py tests/serving/test_comparison.py tests/serving/test_frontend.py \
  tests/serving/*/test_*_codec.py tests/serving/local/test_placement.py tests/test_faults.py \
  tests/load/test_load_*.py tests/lab/test_ledger.py tests/lab/test_contention_plan.py)
RAY := tests/serving/ray tests/lab/test_bench_ray.py tests/lab/test_ray_engines.py

help: ## Show what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[train,bench,ray,dev]'
	touch $@

setup: $(INSTALLED) ## Install everything into .venv

# Apart from .venv, as their pins are others. Triton needs nothing of what its wheel asks for.
$(SERVERS)/.triton: tests/servers/triton.txt | $(INSTALLED)
	rm -rf $(SERVERS)/triton
	$(BIN)/python -m pip install --quiet --no-deps --target $(SERVERS)/triton -r $<
	touch $@

$(SERVERS)/.mlserver: tests/servers/mlserver.txt | $(INSTALLED)
	rm -rf $(SERVERS)/mlserver
	$(BIN)/python -m venv --without-pip $(SERVERS)/mlserver
	$(BIN)/python -m pip --python $(SERVERS)/mlserver/bin/python install --quiet --no-compile -r $<
	touch $@

servers: $(SERVERS)/.triton $(SERVERS)/.mlserver ## Install the Triton and the MLServer of the tests into .servers

demo: setup ## Train, serve under injected slowdowns, and compare the tails (writes demo/)
	$(BIN)/parm demo --out demo

check: setup ## Lint, types, import rules and the quick tests, in under three minutes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile -q $(QUICK)

# Clusters of Ray one after the other, as each wants both cores.
test: setup servers ## Format check, lint, types, import rules, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile $(RAY:%=--ignore=%)
	OMP_NUM_THREADS=1 $(BIN)/pytest $(RAY)

format: setup ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: setup ## Make the files that come from inference.proto again
	cd src/parity_models/serving/grpc && $(CURDIR)/$(BIN)/python -m grpc_tools.protoc --proto_path=. \
	  --descriptor_set_out=inference.binpb --pyi_out=. inference.proto

clean: ## Remove .venv, .servers and caches
	rm -rf $(VENV) $(SERVERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
