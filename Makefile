# Foreshard. `make demo` and `make test` need Python >= 3.11 with headers, a C compiler and make; nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=
STAMP  := $(VENV)/.installed

.PHONY: build test lint demo bench fault-matrix clean help

help:            ## what the targets do
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python >= 3.11 is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Use: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment (Debian: apt install python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel cython

$(STAMP): pyproject.toml setup.py $(BIN)/python
	@echo "Installing and compiling Foreshard into $(VENV): a minute or two, once"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[demo,bench,test,lint]'
	@touch $(STAMP)

build: $(STAMP)  ## make the virtual environment and compile
	@mkdir -p build && flock build/.lock $(BIN)/python setup.py --quiet build_ext --inplace
	@$(BIN)/python -m compileall -q _core proxy bench tests  # a process starts in half of the time

test: build      ## run the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: build      ## ruff, cython-lint, mypy
	$(BIN)/ruff check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint _core proxy
	$(BIN)/mypy

demo: build      ## three embedded shards, the proxy, workers, and a real workload; Ctrl-C ends it
	$(BIN)/foreshard demo $(ARGS)

bench: build     ## every benchmark; results in bench/results
	$(BIN)/python -m bench $(ARGS)

fault-matrix: build  ## kill everything that takes part in moves; writes tests/fault/MATRIX.md
	$(BIN)/python -m tests.support.fault_matrix $(ARGS)

clean:           ## remove the environment, builds, and the data of the demo and of config/foreshard.yaml
	@for file in $$(find -L data config/data -maxdepth 6 -name postmaster.pid 2>/dev/null); do \
	  folder=$$(dirname "$$(readlink -f $$file)"); pid=$$(head -n 1 $$file); \
	  if grep -qa -- "$$folder" /proc/$$pid/cmdline 2>/dev/null; then \
	    kill -INT $$pid; while kill -0 $$pid 2>/dev/null; do sleep 0.1; done; fi; done
	@find data config/data -maxdepth 4 -name instances -type l -exec readlink {} + 2>/dev/null | xargs -r rm -rf
	rm -rf build dist .venv data config/data config/run *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find _core proxy tests bench config -name '__pycache__' -prune -exec rm -rf {} +
	find _core proxy \( -name '*.so' -o -name '*.c' \) -delete
