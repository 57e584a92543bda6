# One file of commands for people and for CI. `make quickstart` and `make test` work on a fresh machine
# that has Python >= 3.11 and make.

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,\
	$(shell command -v $(p) >/dev/null 2>&1 && $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $(p))))
VENV := .venv
BIN := $(VENV)/bin
METADATA := pyproject.toml setup.py constraints.txt
DEMO := unigan_demo

.PHONY: quickstart test test-all lint format docs bench conformance clean help

help:
	@echo "make quickstart   venv, install, then the whole road on phantoms (unigan demo)"
	@echo "make test         venv, install, lint, tests"
	@echo "make test-all     the same with slow tests"
	@echo "make format | lint | docs | bench | clean"
	@echo "make conformance GRPC_ADDR=host:8500 REST_URL=http://host:8501 MODEL_NAME=name"
	@echo "                  whether a server behaves like TensorFlow Serving [TOKEN_FILE= CA_FILE=]"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "keras-unigan needs Python >= 3.11 on the PATH (or make PYTHON=/path/to/python)"; exit 4; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python $(METADATA)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[pipelines,serving]"
	@touch $@

# In one go: two would resolve everything twice.
$(VENV)/.installed-dev: $(BIN)/python $(METADATA)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[pipelines,serving,bench,dev]"
	@touch $(VENV)/.installed $@

quickstart: $(VENV)/.installed
	$(BIN)/unigan demo --overwrite -o $(DEMO)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout notebooks/*.ipynb

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not slow"

test-all: lint
	$(BIN)/python -m pytest

docs: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python docs/models/make_cards.py
	$(BIN)/pdoc -o build/docs keras_unigan

bench: $(VENV)/.installed-dev
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

conformance: $(VENV)/.installed
	@test -n "$(GRPC_ADDR)" -a -n "$(MODEL_NAME)" || { echo "which server? make conformance GRPC_ADDR=host:8500 REST_URL=http://host:8501 MODEL_NAME=name"; exit 2; }
	$(BIN)/python -m keras_unigan.serving.conformance --grpc_addr "$(GRPC_ADDR)" --rest_url "$(REST_URL)" \
		--model_name "$(MODEL_NAME)" --token_file "$(TOKEN_FILE)" --ca_file "$(CA_FILE)"

clean:
	rm -rf $(VENV) build dist *.egg-info $(DEMO)
