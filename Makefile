# Everything below runs in .venv, which these targets make themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Idle OpenMP threads that spin make two busy cores many times slower.
export OMP_WAIT_POLICY = passive

.PHONY: demo test test-all check clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## the posterior of a half-seen digit, as a report: demo/report.html
	$(BIN)/flowinv demo --out demo --overwrite

test: $(VENV)/.installed  ## every test but the slow ones
	$(BIN)/python -m pytest

test-all: $(VENV)/.installed  ## the slow ones too
	$(BIN)/python -m pytest -m ''

check: $(VENV)/.installed  ## linter and type checker
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo build dist *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
