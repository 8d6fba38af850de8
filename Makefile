# Everything runs in a virtual environment inside the checkout; nothing global is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test test-all lint types check clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## the environment, with everything the tests and the demo need

# constraints.txt pins what CI uses. torch comes first, so that nothing else picks its build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "DejaVid needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=24'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## real video in, a table out: the whole pipeline in a few minutes
	$(BIN)/dejavid demo

test: $(STAMP)  ## the fast tests
	$(BIN)/python -m pytest -q -m 'not slow'

test-all: $(STAMP)  ## every test
	$(BIN)/python -m pytest -q

lint: $(STAMP)  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The root folder is the package, so the type checker has to see it under the package's name.
types: $(STAMP)  ## types
	mkdir -p $(VENV)/types && ln -sfn "$(CURDIR)" $(VENV)/types/dejavid
	cd $(VENV)/types && MYPYPATH=. ../bin/mypy --config-file dejavid/pyproject.toml -p dejavid

check: lint types test  ## what a change has to pass

clean:  ## removes the environment and what the demo wrote
	rm -rf $(VENV) runs/demo data/demo
