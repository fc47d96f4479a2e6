# Every target sets up what it needs on a fresh machine: Python 3.11+ and the package index, nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: setup demo test check bench torture fuzz clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("tunesmith needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/tunesmith demo

# One thread a process: the models are tiny, and tests that start processes would otherwise fight over the cores.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=10

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

bench: $(READY)
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/generate.py
	$(BIN)/python benchmarks/dequantize.py
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/optimizer.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/prefix.py
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/scale.py

# 200 kills at random times, 5 at every named instant, the same of transformers beside it: the last line counts what was lost.
torture: $(READY)
	$(BIN)/python -m pytest -m slow --timeout 3600
	$(BIN)/python tests/torture/torture.py --results benchmarks/results/torture.json

fuzz: $(READY)
	$(BIN)/python tests/fuzz/fuzz_formats.py 6000
	$(BIN)/python tests/fuzz/fuzz_models.py 2000

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info
