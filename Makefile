# Every target sets up its own virtual environment with the system Python and pip.
#   make quickstart   train, evaluate and export a small reward model (under 20 minutes on 2 CPU cores)
#   make test         the default tests, two files at a time
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What Tunix's tests need; docs/rl.md has the commands.
TUNIX := .venv-tunix

.PHONY: quickstart test test-slow test-tunix lint bench clean help

help:
	@sed -n 's/^#   //p' $(MAKEFILE_LIST)
#   make lint         ruff and mypy
#   make test-slow    the tests that take minutes each
#   make test-tunix   the tests that train with google-tunix, which no extra installs
#   make bench        the training step against PyTorch; conversion against copying
#   make clean        removes the environments; runs/ stays

quickstart: $(VENV)/.run-ready
	$(BIN)/python -m toolrm_jax.quickstart --workdir runs/quickstart

test: $(VENV)/.dev-ready
	$(BIN)/python -m toolrm_jax.assets
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.dev-ready
	$(BIN)/python -m toolrm_jax.assets
	$(BIN)/python -m pytest -m slow

test-tunix: $(TUNIX)/.ready
	$(TUNIX)/bin/python -m pytest -m slow -k tunix tests/test_reward_functions.py tests/test_examples.py

lint: $(VENV)/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev-ready
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.convert

clean:
	rm -rf $(VENV) $(TUNIX)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-ready: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev-ready: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(TUNIX)/.ready: pyproject.toml docs/rl.md
	$(PYTHON) -m venv $(TUNIX)
	$(TUNIX)/bin/pip install --quiet --disable-pip-version-check -e '.[test]'
	sed -n 's|^pip |$(TUNIX)/bin/pip --quiet --disable-pip-version-check |p' docs/rl.md | sh -e
	touch $@
