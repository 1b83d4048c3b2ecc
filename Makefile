# The two commands of the README are `make demo` and `make test`; each prepares what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
LEARN ?= learn

.PHONY: install lint type test demo learn docs clean help

help:            ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/: .*## */\t/'

install: $(VENV)/.installed ## make the virtual environment and install everything

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

lint: $(VENV)/.installed ## format check and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: $(VENV)/.installed ## type check
	$(BIN)/mypy

test: lint type ## lint, type check, all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

demo: $(VENV)/.installed ## raw releases -> manifests -> a trained X-VLM -> pictures, in minutes
	PATH="$(abspath $(BIN)):$$PATH" sh docs/demo.sh $(DEMO)

learn: $(VENV)/.installed ## the demo trained to its goals, with and without the multi-grained stream
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python benchmarks/learn.py $(LEARN)

docs: $(VENV)/.installed ## the reference of commands and Python, from their docstrings, into site/
	$(BIN)/python docs/reference.py site

clean:           ## remove what `make demo` and the tools wrote
	rm -rf $(DEMO) $(LEARN) site .mypy_cache .ruff_cache .pytest_cache .hypothesis
