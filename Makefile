# quickstart: fresh machine -> environment -> sweep -> law -> plot.   test: everything that runs without a GPU.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: quickstart test lint clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[ray,slurm,test]"
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/scaling submit quickstart --on local
	$(BIN)/scaling fit quickstart
	$(BIN)/scaling plot quickstart

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests that start processes and servers run alone; all others in parallel, one thread each.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not serial"
	$(BIN)/python -m pytest -m serial

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
