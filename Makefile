# Needs Python 3.11 or later and make; everything else goes into .venv. Where uv is installed it does so in seconds.
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv)
VENV := $(if $(UV),$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv,$(PYTHON) -m venv .venv)
INSTALL := $(if $(UV),$(UV) pip install --quiet --python .venv,$(BIN)/python -m pip install --quiet --disable-pip-version-check)
SHELL := bash
.SHELLFLAGS := -o pipefail -c
DEMO := outputs/demo
DEVICE ?= cpu
PROFILE ?= cpu
# a process for each core, and work for whoever has none left; tests use one thread each
PARALLEL := -n auto --maxprocesses=8 --dist=worksteal

.PHONY: setup demo rules table1 table2 table3 table4 figure2 report test test-quick test-slow test-cuda check bench docs wheel clean

setup: .venv/.ready  ## the environment, exactly as tested

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fishexp needs Python 3.11 or later, this is " + sys.version.split()[0])'
	$(VENV)
	$(INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## five methods on the digits over three seeds, a table and a picture
	$(BIN)/python -m fishexp -m method=fish,random,magnitude,bitfit,full seed=0,1,2 outputs=$(DEMO)
	$(BIN)/python -m fishexp.report.table $(DEMO)/records.jsonl --uncommitted | tee $(DEMO)/table.md
	$(BIN)/python -m fishexp.report.plot $(DEMO)/records.jsonl --uncommitted -o $(DEMO)/demo.png

EXPERIMENT = PROFILE=$(PROFILE) DRY=$(DRY) HOURS=$(HOURS) PYTHON=$(BIN)/python $(BIN)/python -m experiments $@

rules: setup  ## which rule at which budget: ten of them at equal k, each at its own rate; PROFILE, DRY, HOURS as for table4
	$(EXPERIMENT)

table1: setup  ## the paper's Table 1, GLUE, with Diff Pruning and LoRA beside it; PROFILE, DRY, HOURS as for table4
	$(EXPERIMENT)

table2: setup  ## the paper's Table 2, workers that merge rarely, on GLUE; PROFILE, DRY, HOURS as for table4
	$(EXPERIMENT)

table3: setup  ## the paper's Table 3, the same on CIFAR-10; PROFILE, DRY, HOURS as for table4
	$(EXPERIMENT)

table4: setup  ## the paper's Table 4; PROFILE=cpu takes hours, gpu and paper more; DRY=1 says how many, HOURS=n stops after n
	$(EXPERIMENT)

figure2: setup  ## the paper's Figure 2, budgets, samples and labels on GLUE; PROFILE, DRY, HOURS as for table4
	$(EXPERIMENT)

report: setup  ## one HTML page of all experiments' records, outputs/report.html, with the curves of runs in outputs
	mkdir -p outputs
	$(BIN)/python -m fishexp.report.page experiments/*/records.jsonl --runs outputs -o outputs/report.html

test: setup  ## all but the slow tests, on all cores; then those that need the machine for themselves
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow and not alone and not cuda'
	$(BIN)/python -m pytest -m 'alone and not slow' $$(grep -rl --include='*.py' mark.alone tests)

test-quick: setup  ## the tests of the library and of training in one process, in a minute
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow and not alone' tests/masks tests/delta tests/sparse tests/fisher tests/data tests/training

test-slow: setup  ## all tests
	$(BIN)/python -m pytest --timeout=3600

test-cuda: setup  ## what holds on a GPU, in minutes
	$(BIN)/python -m pytest -m cuda

check: setup  ## style, types, and who imports whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo --no-cache

bench: .venv/.bench  ## training steps, Fisher scores, deltas and merges beside other ways to them, in 40 minutes; DEVICE=cuda on a GPU
	$(BIN)/python -m benchmarks --device $(DEVICE)

.venv/.bench: .venv/.ready
	$(INSTALL) -c constraints.txt -e '.[dev,bench]'
	touch $@

docs: .venv/.docs  ## the site of docs/, docs/_build/index.html; a warning is an error
	$(BIN)/python -m sphinx -EaqW --keep-going -b html docs docs/_build

.venv/.docs: .venv/.ready
	$(INSTALL) -c constraints.txt -e '.[dev,docs]'
	touch $@

wheel: setup  ## dist/fishexp-*.whl, with conf/ inside
	$(BIN)/python -m build

clean:
	rm -rf .venv dist docs/_build outputs
