# make test and make demo set up everything themselves: a virtual environment in .venv, at the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CONSTRAINTS := constraints.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PIP_INSTALL := $(PIP) --constraint $(CONSTRAINTS)
# The oldest Triton that pyproject.toml allows, beside the newest: the tests compile every kernel with both.
OLDEST_TRITON := $(shell sed -n 's/.*"triton>=\([0-9.]*\).*/\1/p' pyproject.toml)

# Threads that wait by spinning bring each other to a halt on a machine that is busy with other things. Benchmarks have
# what users have: small ops take twice as long where each has to wake the threads.
install test test-slow lint demo docs: export OMP_WAIT_POLICY ?= passive

.PHONY: help install test test-slow lint demo docs bench clean

help:
	@echo 'make test       lint, types and tests'
	@echo 'make install    set up alone; CONSTRAINTS=file for other versions than those of constraints.txt'
	@echo 'make demo       train on the handwritten digits, with a report in runs/demo'
	@echo 'make docs       the documentation, in docs/_build/html; its code is run'
	@echo 'make test-slow  the tests that take minutes'
	@echo 'make lint       formatting, ruff and mypy alone'
	@echo 'make bench      benchmarks against other libraries'
	@echo 'make clean      remove .venv, build products and caches'

# torch comes first and by itself, so that its pinned version decides which build is taken.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@echo 'Setting up $(VENV) (once; a few minutes) ...'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch 'setuptools>=77'
	$(PIP_INSTALL) --no-build-isolation --editable '.[test,integrations,docs]'
	@touch $@

install: $(INSTALLED)

$(VENV)/.installed-benchmarks: $(INSTALLED)
	$(PIP_INSTALL) --no-build-isolation --editable '.[test,benchmarks]'
	@touch $@

$(VENV)/.triton-oldest: pyproject.toml $(INSTALLED)
	rm -rf $(VENV)/triton-oldest
	$(PIP) --no-deps --target $(VENV)/triton-oldest triton==$(OLDEST_TRITON) || \
	    { echo 'Triton $(OLDEST_TRITON) cannot be downloaded; without it: $(BIN)/python -m pytest' >&2; exit 1; }
	@touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')
	$(BIN)/mypy

test: lint $(VENV)/.triton-oldest
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# One thread: the network is so small that two spend their time waiting for each other.
demo: $(INSTALLED)
	$(BIN)/fastndsm train --data digits --out runs/demo --overwrite --threads 1

docs: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going --jobs auto --builder html docs docs/_build/html
	$(BIN)/python -m pytest --quiet tests/test_pages.py
	@echo 'Open docs/_build/html/index.html'

bench: $(VENV)/.installed-benchmarks
	$(BIN)/python -m pytest benchmarks

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache .benchmarks
