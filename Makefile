# Every target sets up its own virtual environment with the system Python and pip.
#   make quickstart   train, evaluate and export a small reward model (under 20 minutes on 2 CPU cores)
#   make test         the default tests, two files at a time
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow lint bench clean help

help:
	@sed -n 's/^#   //p' $(MAKEFILE_LIST)
#   make lint         ruff and mypy
#   make test-slow    the tests that take minutes each
#   make bench        the training step against PyTorch; conversion against copying
#   make clean        removes the environment; runs/ stays

quickstart: $(VENV)/.run-ready
	$(BIN)/python -m toolrm_jax.quickstart --workdir runs/quickstart

test: $(VENV)/.dev-ready
	$(BIN)/python -m toolrm_jax.assets
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.dev-ready
	$(BIN)/python -m toolrm_jax.assets
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev-ready
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.convert

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-ready: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev-ready: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
