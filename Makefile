# Each target makes the virtual environment that it needs and says what it does.
#
#   make demo                      captioned images -> a model -> scored pictures -> report.html
#   make test                      the default test suite
#   make lint                      style, types, direction of imports
#   make bench                     one JSON row for each measurement
#
#   make demo MINUTES=3 OUT=my-demo SEED=7
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu     # PyTorch without its GPU parts

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BENCHMARKS ?= attention autoencoder cold_start formulation joint_block memory pipeline planner \
	shapeworld store_to_batches training_step
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --progress-bar off \
	-c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# one thread a process: the tests run in parallel, and results do not depend on the machine's cores
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help demo test lint bench

help:
	@sed -n '1,9s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.runtime
	@echo "== demo: draws a world, trains a model on it, scores its pictures and writes report.html"
	$(BIN)/rectiflow demo $(if $(OUT),--out "$(OUT)") $(if $(MINUTES),--minutes $(MINUTES)) \
		$(if $(SEED),--seed $(SEED))

test: $(VENV)/.dev
	@echo "== test: the default suite in $(JOBS) processes (no GPU, no browser, nothing slow)"
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

lint: $(VENV)/.dev
	@echo "== lint: ruff (rules, format), pyright (types), import-linter (direction of imports)"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	@echo "== bench: one JSON row for each measurement, added to benchmarks/results/"
	@set -e -o pipefail; for name in $(BENCHMARKS); do echo "-- $$name"; \
		$(BIN)/python benchmarks/$$name.py | tee -a benchmarks/results/$$name.jsonl; done

$(VENV)/.python:
	@echo "== making the virtual environment $(VENV)"
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit( \
		f"rectiflow needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]}. Try: make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV) || { echo "python3 cannot make virtual environments here;" \
		"install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@touch $@

$(VENV)/.runtime: $(VENV)/.python pyproject.toml constraints.txt
	@echo "== installing rectiflow and what it runs on into $(VENV), versions from constraints.txt"
	@$(PIP) --quiet -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	@echo "== installing rectiflow and its development tools into $(VENV), versions from constraints.txt"
	@$(PIP) --quiet -e '.[dev]'
	@touch $@ $(VENV)/.runtime
