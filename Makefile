# Every target sets up what it needs. PYTHON names the interpreter that makes .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Data sets for the tests that want real ones; they skip with a reason when it is absent.
export RAYCURV_DATA ?= $(abspath ../shared/data)

.PHONY: install test lint demo clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

test: install
	$(BIN)/python -m pytest -n 2 --dist loadscope --durations 25

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Trains on a Ray of its own, which ends with it unless KEEP=1.
demo: install
	$(BIN)/python jobs/demo.py

clean:
	rm -rf $(VENV) runs
