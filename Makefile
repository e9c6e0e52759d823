# Everything that is needed is python3 (3.11 to 3.13) and make; `make run` and `make test` do all the rest.

PYTHON ?= python3
VENV := .venv
ORACLE_VENV := .venv-oracle
BIN := $(VENV)/bin
PIP_FLAGS := --quiet --disable-pip-version-check --no-input
PIP_COMPILE := $(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-header \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options

export DYNAMO_ORACLE_PYTHON ?= $(CURDIR)/$(ORACLE_VENV)/bin/python

.PHONY: install run test fuzz interop bench bench-routing lint types docs format lock clean

install: $(VENV)/installed

$(VENV)/dependencies: requirements/dev.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) --require-hashes -r requirements/dev.txt
	touch $@

# OpenAI's client for Node, as a test needs it; node and npm are packages of the environment.
NODE_TESTS := tests/e2e/node
$(NODE_TESTS)/node_modules/.package-lock.json: $(NODE_TESTS)/package-lock.json $(VENV)/dependencies
	cd $(NODE_TESTS) && PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --silent --no-audit --no-fund
	touch $@

$(VENV)/installed: $(VENV)/dependencies pyproject.toml
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation --editable .
	touch $@

# The real Dynamo 1.6.1. Its own requirements name what a GPU worker needs; ours is the part that runs here.
$(ORACLE_VENV)/installed: requirements/interop.txt requirements/anchor.txt
	$(PYTHON) -m venv --clear $(ORACLE_VENV)
	$(ORACLE_VENV)/bin/python -m pip install $(PIP_FLAGS) --require-hashes --no-deps \
		-r requirements/interop.txt -r requirements/anchor.txt
	touch $@

$(CURDIR)/$(ORACLE_VENV)/bin/python: $(ORACLE_VENV)/installed

run: install
	@exec $(BIN)/python -m dynamo.frontend.demo $(ARGS)

test: install $(NODE_TESTS)/node_modules/.package-lock.json
	$(BIN)/python -m pytest --ignore=tests/interop $(ARGS)

# As many examples of each target as FUZZ_EXAMPLES says, other ones each time.
fuzz: export FUZZ_EXAMPLES ?= 20000
fuzz: install
	$(BIN)/python -m pytest tests/fuzz $(ARGS)

interop: install $(DYNAMO_ORACLE_PYTHON)
	$(BIN)/python -m pytest tests/interop $(ARGS)

bench: install $(DYNAMO_ORACLE_PYTHON)
	$(BIN)/python -m bench $(ARGS)

bench-routing: install $(DYNAMO_ORACLE_PYTHON)
	$(BIN)/python -m bench.routing $(ARGS)

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: install
	$(BIN)/mypy
	$(BIN)/mypy tests bench docs

docs: install
	$(BIN)/python docs/generate.py

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: install
	$(PIP_COMPILE) --output-file requirements/runtime.txt pyproject.toml
	$(PIP_COMPILE) --output-file requirements/dev.txt requirements/dev.in
	$(PIP_COMPILE) --output-file requirements/interop.txt requirements/interop.in

clean:
	rm -rf $(VENV) $(ORACLE_VENV) $(NODE_TESTS)/node_modules build dist *.egg-info bench/out
