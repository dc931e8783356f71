# make demo: set-up plus a full federated run. make test: set-up plus all tests that need no container engine.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test check format setup clean

demo: setup
	$(BIN)/fednano demo

test: setup
	$(BIN)/pytest -m "not docker"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd proto && ../$(BIN)/buf lint
	cd proto && ../$(BIN)/buf format --diff --exit-code

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	cd proto && ../$(BIN)/buf format --write

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt hatch_build.py $(wildcard proto/fednano/v1/*.proto)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/pip install --quiet --editable '.[dev]'
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) runs fednano/v1 .mypy_cache .pytest_cache .ruff_cache .hypothesis
