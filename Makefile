PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SERVERS := .servers

.DEFAULT_GOAL := help
.PHONY: help setup servers demo check test format protos clean

# Tests of what computes and decides, without processes, servers or training.
QUICK := codes learned comparison frontend late_events poison verification hung health policies \
  policies_adaptive dispatch nodes placement interference ledger rest_codec grpc_codec bundle \
  load_schedule load_report contention_plan faults cli

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
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile -q $(QUICK:%=tests/test_%.py)

# Clusters of Ray one after the other, as each wants both cores.
test: setup servers ## Format check, lint, types, import rules, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --ignore-glob='*ray*'
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_*ray*.py

format: setup ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: setup ## Make the files that come from inference.proto again
	cd src/parity_models/serving/grpc && $(CURDIR)/$(BIN)/python -m grpc_tools.protoc --proto_path=. \
	  --descriptor_set_out=inference.binpb --pyi_out=. inference.proto

clean: ## Remove .venv, .servers and caches
	rm -rf $(VENV) $(SERVERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
