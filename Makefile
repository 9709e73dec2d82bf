# `make repro` and `make test` are all that a fresh clone needs; both make the environment first, and both are quick when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PRESET ?= tiny
PAPER ?=
SEEDS ?=
FORCE ?=
MINUTES ?= 12
JOBS ?=
GPUS ?=
LAUNCH ?=
PORT ?= $(if $(filter dashboard,$(MAKECMDGOALS)),8080,5000)
ARM ?= committees-digits
SETTING ?= cached
MACHINES ?= local
STUDY ?= $(ARM)-$(SETTING)
WORKERS ?=
TRIALS ?=
STORAGE ?=
DRY_RUN ?=
export MLFLOW_DISABLE_TELEMETRY := true
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup repro page test test-slow check check-plan sweep dashboard audit release bench ui sync doctor lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed  ## make .venv and install the locked versions

$(VENV)/.installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Choose another with `make setup PYTHON=python3.12`.")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

repro: setup  ## run what is not up to date and print the claims (PAPER=maskalign, SEEDS=5, FORCE=1, PRESET=paper, JOBS=4, GPUS=0,1, LAUNCH='srun -N1 -n1')
	@$(BIN)/python -m stages.repro --preset $(PRESET) $(if $(PAPER),--paper $(PAPER)) $(addprefix --seeds ,$(SEEDS)) \
	  $(if $(FORCE),--force) $(addprefix --jobs ,$(JOBS)) --gpus '$(GPUS)' --launch '$(LAUNCH)'

page: setup  ## the page of what is there: results on this machine, else the verdicts that are committed (PRESET=paper)
	@$(BIN)/python -m stages.report --preset $(PRESET)
	@echo data/report/$(PRESET)/index.html

test: setup  ## the quick tests, on every core (PAPER=maskalign: those of a paper)
	@$(BIN)/python -m pytest -n logical --dist worksteal $(if $(PAPER),--paper $(PAPER))

test-slow: setup  ## the tests that need minutes: kills, servers, whole pipelines
	@$(BIN)/python -m pytest -m slow

check: setup check-plan  ## formatting, lint, and the plan with every configuration
	@$(BIN)/ruff format --check --quiet . || { echo 'run: $(BIN)/ruff format .'; exit 1; }
	@$(BIN)/ruff check --quiet .

check-plan: setup
	@$(BIN)/python -m stages.check --preset $(PRESET)

audit: setup  ## prove that the committed locks are true: all of them by what they record, a sample by a new run (MINUTES=12)
	@$(BIN)/python -m stages.audit --preset $(PRESET) --minutes $(MINUTES)

release: setup  ## before a commit of new locks: record what made them and how long it took, and write the README's table (PAPER=maskalign)
	@$(BIN)/python -m stages.release --preset $(PRESET) $(if $(PAPER),--paper $(PAPER))

bench: setup  ## speed and memory, as ratios measured in one run (PAPER=maskalign: those of a paper)
	@$(BIN)/python -m benchmarks $(if $(PAPER),--paper $(PAPER))

sweep: setup  ## search singles against committees, until TRIALS are done (ARM, SETTING=training, WORKERS=2, STUDY, STORAGE, MACHINES=slurm, DRY_RUN=1)
	@$(BIN)/python -m stages.study $(ARM) --preset $(PRESET) --setting $(SETTING) --machines $(MACHINES) --study $(STUDY) \
	  $(addprefix --workers ,$(WORKERS)) $(addprefix --trials ,$(TRIALS)) $(addprefix --storage ,$(STORAGE)) $(if $(DRY_RUN),--dry-run)

dashboard: setup  ## optuna-dashboard on a study, on PORT (8080; STUDY, STORAGE)
	@$(BIN)/python -m stages.ui --port $(PORT) --study $(STUDY) $(addprefix --storage ,$(STORAGE))

ui: setup  ## MLflow's pages over all runs, on PORT (5000)
	@$(BIN)/python -m stages.ui --port $(PORT)

sync: setup  ## send what MLflow has not got yet
	@$(BIN)/python -m lightning_modules.tracking.mirror --flush

doctor: setup  ## say in plain words what is wrong with this environment
	@$(BIN)/python -m stages.doctor

lock:  ## resolve pyproject.toml anew into requirements.lock
	$(BIN)/pip-compile --quiet --extra dev --strip-extras --allow-unsafe --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements.lock pyproject.toml
	@sed -i -e '/^#/d' -e 's/^\(torch==[0-9.]*\)+.*/\1/' requirements.lock

clean:  ## remove what the pipeline made and the store of trained seeds (not DVC's cache, MLflow's runs or downloads)
	rm -rf data/sources data/datasets data/runs data/results data/report .scratch/training .scratch/seeds .scratch/logs
