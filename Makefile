# make demo, make test: both create the environment first if it does not exist.
PYTHON ?= python3
BIN := .venv/bin

# make VENV_ARGS=--system-site-packages keeps a torch that the machine has, if it is in the range of pyproject.toml.
VENV_ARGS ?=
# An index that torch alone is taken from, as README.md says; without it, the one that pip is set up for.
TORCH_INDEX ?=

.venv: .venv/installed           ## create the environment, step by step
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) .ci/install.py --venv-args='$(VENV_ARGS)' --torch-index='$(TORCH_INDEX)'
	touch $@

DEMO := demo-$(shell date +%Y%m%d-%H%M%S)
RUN := outputs/$(DEMO)
# No split of the task touches the 24 sections of the box.
DEMO_SETTINGS := task.tile_size=128,128 task.z_val=21,37 task.z_test=38,44 network.start_filters=8 network.batch_size=4 \
	network.epochs=4 network.tiles_per_epoch=1408 network.learning_rate=0.006
DEMO_BOX := 56:80,0:512,0:1024
demo: .venv                      ## train on a synthetic cortex, segment an unseen part of it, evaluate the result
	@$(BIN)/python -m kasthuri_ray.benchmarks.demo_time
	$(BIN)/python jobs/train.py --task phantom_synapse --set $(DEMO_SETTINGS) --name $(DEMO)
	$(BIN)/python jobs/segment.py --weights $(RUN) --output $(RUN)/synapses.zarr --box $(DEMO_BOX) --objects --tta
	$(BIN)/python jobs/evaluate.py --prediction $(RUN)/synapses.zarr --annotation 'phantom://synapse?shape=80,2048,2048&seed=7'
	@echo "Open these in a browser: $(RUN)/index.html (training), $(RUN)/synapses.zarr.evaluation/index.html (evaluation)"

PYTEST := $(BIN)/python -m pytest
TWO_PROCESSES := --numprocesses=2 --dist=loadgroup --no-loadscope-reorder
test: .venv                      ## run the test suite
	$(PYTEST) $(TWO_PROCESSES)

test-all: .venv                  ## run what `make test` leaves out: slow tests, browsers, long trials in a short form
	KASTHURI_FAULT_TRIALS=$${KASTHURI_FAULT_TRIALS:-4} $(PYTEST) $(TWO_PROCESSES) -m '(slow or browser or faults) and not cluster'

test-faults: .venv               ## long tests: processes killed at random moments
	$(PYTEST) -m faults

test-cluster: .venv              ## long tests on several hosts (root on Linux): killed, disconnected and lost hosts
	$(PYTEST) -m 'cluster or not cluster' tests/cluster

lint: .venv                      ## check style, imports, declared dependencies, types, docstrings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/mypy
	$(BIN)/python tests/docstrings.py

docs: .venv                      ## build the documentation as a site: build/site/docs/index.html
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . build/site
	@echo "Open this in a browser: build/site/docs/index.html"

wheels: .venv                    ## check that every package has a wheel for x86 and ARM
	$(BIN)/python tests/wheels.py

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /: /'

.PHONY: .venv demo test test-all test-faults test-cluster lint docs wheels help
