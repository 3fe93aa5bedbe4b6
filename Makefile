# Foreshard. `make demo` and `make test` need Python >= 3.11 with headers, a C compiler and make; nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=
STAMP  := $(VENV)/.installed

.PHONY: build test lint demo bench clean help

help:            ## what the targets do
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel cython

$(STAMP): pyproject.toml setup.py $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[demo,bench,test,lint]'
	@touch $(STAMP)

build: $(STAMP)  ## make the virtual environment and compile
	@mkdir -p build && flock build/.lock $(BIN)/python setup.py --quiet build_ext --inplace

test: build      ## run the whole test suite
	$(BIN)/python -m pytest $(ARGS)

lint: build      ## ruff, cython-lint, mypy
	$(BIN)/ruff check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint _core proxy
	$(BIN)/mypy

demo: build      ## three embedded shards, the proxy, workers, and a real workload; Ctrl-C ends it
	$(BIN)/foreshard demo $(ARGS)

bench: build     ## every benchmark; results in bench/results
	$(BIN)/python -m bench $(ARGS)

clean:           ## remove the environment, builds and the demo's data
	rm -rf build dist .venv data *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find _core proxy tests bench -name '__pycache__' -prune -exec rm -rf {} +
	find _core proxy \( -name '*.so' -o -name '*.c' \) -delete
