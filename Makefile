# quickstart: fresh machine -> environment -> sweep -> law -> plot.
# test: every claim that can be checked without a GPU, in minutes.   test-slow: what takes longer.   fuzz: many examples.
PYTHON ?= python3
VENV := .venv
PARITY := .venv-parity
BIN := $(VENV)/bin
JOBS ?= 2
# Every worker imports the files that it is given, and with them torch: it is given those that have such tests.
SERIAL = $(sort $(shell grep -rl --include='test_*.py' 'mark\.serial' tests))
SLOW = $(sort $(shell grep -rl --include='test_*.py' 'mark\.slow' tests))

# The tests start hundreds of processes, each of which compiles every module anew where an image forbids keeping bytecode.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test test-slow fuzz lint parity clean

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

# Tests that start processes and servers run last, and four files at a time: they wait more than they compute. The
# order is that of tests/conftest.py, long files first, and not by how many tests a file has.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not serial and not slow"
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "serial and not slow" $(SERIAL)

test-slow: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not serial and slow" $(SLOW)
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "serial and slow" $(filter $(SLOW),$(SERIAL))

# What it finds becomes a fixed example of its property, which `make test` then tries.
FUZZ ?= 50
fuzz: $(VENV)/installed
	OMP_NUM_THREADS=1 SCALING_FUZZ=$(FUZZ) $(BIN)/python -m pytest -n $(JOBS) --timeout 0 -m hypothesis

# Models against other packages' implementations, which live in an environment of their own.
$(PARITY)/installed: tests/parity/requirements.txt
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet "torch==2.13.0"
	$(PARITY)/bin/python -m pip install --quiet --requirement tests/parity/requirements.txt
	touch $@

parity: $(VENV)/installed $(PARITY)/installed
	SCALING_PARITY_PYTHON=$(abspath $(PARITY))/bin/python $(BIN)/python -m pytest tests/parity

clean:
	rm -rf $(VENV) $(PARITY) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
