# make demo: set-up plus a full federated run. make test: set-up plus all tests that need no container engine.
# make e2e: set-up, then images, docker compose and harm done to containers; needs a container engine and its compose.
# make gate-deploy: set-up, helm where there is none, then Dockerfiles, chart, compose files and vulnerabilities.
# make chaos: set-up plus the chaos suite in its long form, of which make test holds the short one.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test chaos e2e images check gate-deploy format setup clean

demo: setup
	$(BIN)/fednano demo

test: setup
	$(BIN)/pytest -m "not docker and not chaos"

chaos: setup
	$(BIN)/pytest tests/chaos tests/integration/test_hostile_frames.py

e2e: setup
	$(BIN)/pytest tests/e2e

images:
	FEDNANO_REVISION=$$(git rev-parse HEAD) docker compose build

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint services/*/Dockerfile
	cd proto && ../$(BIN)/buf lint
	cd proto && ../$(BIN)/buf format --diff --exit-code

gate-deploy: setup
	-$(BIN)/python -m tools.fetch_helm $(BIN)
	$(BIN)/python -m tools.gate_deploy

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
