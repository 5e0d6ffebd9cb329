# Two commands set everything up on a fresh machine with Python >= 3.11, make and git:
#   make demo    the whole path, offline, about five minutes on two cores (open runs/demo/report.html)
#   make test    the tests (make test-all: the slow ones too)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NEED_GB := 8  # the environment takes 6.1 GB, of which PyTorch with CUDA 5.3

.PHONY: demo test test-all bench check format stats clean help

help:
	@sed -n '1,4p' Makefile; echo "  make check   lint, format and types;  make format rewrites;  make bench measures on this CPU;  make clean removes $(VENV)"

demo: $(READY)
	$(BIN)/foveate demo --out runs/demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2  # two processes of one thread: more threads would wait for each other

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m ""

bench: $(READY)
	$(BIN)/python benchmarks/run.py $(BENCH)

check: $(READY)
	$(BIN)/ruff check src tests benchmarks tools
	$(BIN)/ruff format --check src tests benchmarks tools
	$(BIN)/pyright src

stats: $(READY)
	$(BIN)/python tools/stats.py --strict

format: $(READY)
	$(BIN)/ruff check --fix src tests benchmarks tools
	$(BIN)/ruff format src tests benchmarks tools

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Foveate needs Python 3.11 or newer; $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12 ..." % v[:2])'
	@$(PYTHON) -c 'import os, shutil, sys; free = shutil.disk_usage(".").free / 1e9; sys.exit(not os.path.exists("$(BIN)/foveate") and free < $(NEED_GB) and "Foveate needs $(NEED_GB) GB of free disk for its environment; here are %.1f GB." % free)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV)
