# asmil-wsi: make demo | test | setup | lint | bench | clean
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= $(shell nproc 2>/dev/null || echo 2)
READY := $(VENV)/.ready

.PHONY: help setup demo test lint bench clean

help:
	@echo "make demo    install, write small synthetic slides, run the whole workflow on them"
	@echo "make test    install, lint, check types, run all tests"
	@echo "make setup   install the pinned packages into .venv"
	@echo "make lint    ruff, mypy, snakefmt, snakemake --lint"
	@echo "make bench   the quick benchmarks"
	@echo "make clean   remove what the demo and the tests made, by checksum (never data/, results/ or reports/)"

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

demo: setup
	$(BIN)/python -m pipeline demo demo
	$(BIN)/snakemake --snakefile workflow/Snakefile --directory demo --cores $(CORES)
	@echo "The report: demo/reports/index.html"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check workflow
	$(BIN)/snakemake --lint

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(CORES)

bench: setup
	@for script in benchmarks/*.py; do $(BIN)/python $$script --quick || exit 1; done

clean:
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m pipeline demo demo --remove; \
	elif [ -e demo/demo.json ]; then echo "demo/ stays: run make setup, as removing it needs the program, and make clean again"; fi
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
