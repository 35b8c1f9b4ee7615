# make demo, make test: on a fresh machine both make the environment first.
PYTHON ?= python3
BIN := .venv/bin

.venv: .venv/installed
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint]'
	touch $@

DEMO := demo-$(shell date +%Y%m%d-%H%M%S)
demo: .venv                      ## train on a synthetic cortex, and leave a page to look at
	$(BIN)/python jobs/train.py --task phantom_synapse --set network.epochs=4 --set network.tiles_per_epoch=352 --set network.batch_size=4 --name $(DEMO)
	@echo "Open outputs/$(DEMO)/index.html in a browser."

test: .venv                      ## the whole suite
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadgroup

test-faults: .venv               ## the long trials: kills at random moments
	$(BIN)/python -m pytest -m faults

lint: .venv                      ## style, layers, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

wheels: .venv                    ## shows that all of it comes as wheels, on x86 and ARM
	$(BIN)/python tests/wheels.py

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /: /'

.PHONY: .venv demo test test-faults lint wheels help
