# `make demo` aligns a tiny model from nothing; `make test` runs every test. Both set up .venv first, once.
PYTHON ?= python3.11
ROOT ?= kubealign-data
SEED ?= 0
ROUNDS ?= 3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup demo real test cluster-up cluster-down test-cluster bench lint golden lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with the hash-locked dependencies

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); install Python 3.11 or say make PYTHON=python3.12" >&2; exit 1; }
	@# Debian keeps ensurepip in a package of its own.
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv 2>/dev/null \
	  || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -q && apt-get install -yq python3-venv && $(PYTHON) -m venv --clear .venv; } \
	  || { echo "error: $(PYTHON) cannot make a virtual environment; run: apt-get install python3-venv" >&2; exit 1; }
	@# uv itself comes by hash from the same lock file.
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	@test -x $(BIN)/uv || $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r .venv/uv.lock
	$(BIN)/uv pip sync -q --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY) ## The whole chain on a tiny world: SEED=0, about eight minutes on two cores
	$(BIN)/kubealign run --profile demo --root $(ROOT) --seed $(SEED)

real: $(READY) ## The whole chain on real data: DATA=folder
	@test -n "$(DATA)" || { echo "error: say where the data is: make real DATA=../shared/data" >&2; exit 1; }
	$(BIN)/kubealign run --profile real-small --root $(ROOT) --seed $(SEED) --data-root $(DATA)

test: $(READY) ## All tests, on two workers
	$(BIN)/python -m pytest -n 2 --dist worksteal -q tests/unit tests/integration

cluster-up: $(READY) ## A whole Kubernetes on this machine (root, Go, Debian), with our images
	$(BIN)/python -m tests.cluster.harness up

cluster-down: $(READY) ## Take it down; programs and images are kept in ~/.cache/kubealign
	$(BIN)/python -m tests.cluster.harness down

test-cluster: $(READY) ## The tests that need a cluster; it goes with them unless it was up before
	$(BIN)/python -m tests.cluster.harness test

bench: $(READY) ## Speed and memory beside TRL and the bare tokenizer, in turns: ROUNDS=3
	$(BIN)/python -m tests.benchmarks.run --rounds $(ROUNDS)
	$(BIN)/python -m tests.benchmarks.data_prep --rounds $(ROUNDS)
	$(BIN)/python -m tests.benchmarks.near_duplicates --rows 1000000 --processes 2

lint: $(READY) ## Style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

golden: $(READY) ## Write the golden files again, after a change that is meant
	KUBEALIGN_GOLDEN=write $(BIN)/python -m pytest -q tests/unit -k golden

lock: $(READY) ## Resolve the dependencies again
	$(BIN)/uv pip compile -q pyproject.toml --extra training --extra pipelines --extra dev --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements.lock
	$(BIN)/python images/lock.py

clean: ## Remove the environment, caches and runs
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache $(ROOT)
