# Each target sets up what it needs in .venv, on a fresh clone too.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check test-all bench docs clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dash,map,dev]"
	touch $(STAMP)

demo: $(STAMP)  ## train, evaluate and show a dictionary of the embedded model
	$(BIN)/saetools quickstart

check: $(STAMP)  ## format, lint, types, fast tests (<= 2 minutes)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q -m "not slow and not gpu and not network and not browser" -n 2 --hypothesis-profile quick \
		tests/test_architecture.py tests/test_arguments.py tests/contracts tests/dictionaries tests/functional tests/formats

test: $(STAMP)  ## everything but slow tests (<= 8 minutes)
	$(BIN)/pytest -q -m "not slow and not gpu and not network" -n 2 tests

test-all: $(STAMP)  ## all tests (<= 35 minutes)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q -m "not gpu and not network" -n 2 tests

bench: $(STAMP)  ## rows of the kernels' benchmarks to analysis/bench; on an idle machine
	for what in step ops loader mp; do $(BIN)/python scripts/bench.py $$what --record || exit 1; done
	for size in features batch; do $(BIN)/python scripts/bench.py growth --over $$size --record || exit 1; done

docs: $(STAMP)  ## the API reference from the docstrings, in docs/
	$(BIN)/python scripts/docs.py docs

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
