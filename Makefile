# Every target sets up what it needs; `make help` lists them. PYTHON names the interpreter that makes .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Data sets for the tests that want real ones; they skip with a reason when it is absent.
export RAYCURV_DATA ?= $(abspath ../shared/data)

.PHONY: help install test test-fast reliability gpu survey lint release demo clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

install: $(VENV)/.installed ## make .venv with the package and everything that its tests need

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

test: install ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadscope --durations 25 -m 'not reliability'

test-fast: install ## the tests that take three minutes together: no Ray, no MLflow server
	$(BIN)/python -m pytest -n 2 --dist loadscope --durations 10 -m 'not slow and not cluster and not reliability' \
		--ignore tests/service --ignore tests/tracking --ignore tests/adapters --ignore tests/test_docs.py

# Goes on where it was interrupted.
reliability: install ## hours of kills, full disks and damaged inputs; writes docs/reliability.md
	RAYCURV_TRUST=tests OMP_NUM_THREADS=1 nice $(BIN)/python -m tests.reliability.campaign --folder build/reliability

# Wants torch, numpy and pytest alone: PYTHON may be any interpreter that has them.
gpu: ## curvature and optimizers on a CUDA device; prints a table of step costs and writes build/gpu.json
	PYTHONPATH=. $(PYTHON) -m pytest tests/gpu --confcutdir tests/gpu -p no:cacheprovider -o addopts= -ra
	PYTHONPATH=. $(PYTHON) -m tests.gpu.report --output build/gpu.json

survey: install ## curvature of models of torchvision, timm and transformers; goes on where it stopped; writes docs/models.md
	$(BIN)/python -m tests.survey

lint: install ## style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

release: install ## build the wheel and the source archive in dist/, install the wheel afresh, train with it
	rm -rf dist build
	$(BIN)/python -m build --no-isolation
	RAYCURV_DIST=$(abspath dist) $(BIN)/python -m pytest \
		tests/cli/test_wheel.py tests/test_project_files.py tests/test_public_names.py tests/test_deprecation.py

# Ray ends with the demo unless KEEP=1.
demo: install ## train small images on a local Ray with two workers
	$(BIN)/python -m raycurv.cli.demo

clean: ## remove .venv; runs stay
	rm -rf $(VENV)
