# In a fresh clone, run `make repro` or `make test`: each of them first makes the environment (.venv) if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PRESET ?= $(if $(filter rehearse,$(MAKECMDGOALS)),paper,tiny)
PAPER ?=
SEEDS ?=
FORCE ?=
MINUTES ?=
JOBS ?=
GPUS ?=
LAUNCH ?=
PORT ?= $(if $(filter dashboard,$(MAKECMDGOALS)),8080,5000)
ARM ?= committees-digits
SETTING ?= cached
MACHINES ?= local
STUDY ?= $(subst $(space),-and-,$(strip $(ARM)))-$(SETTING)
WORKERS ?=
TRIALS ?=
STORAGE ?=
TASK ?=
DRY_RUN ?=
MEMORY ?=
JSON ?=
space := $() $()
# $(call quoted,text) is one word of the shell, whatever the text holds; $(call option,--name,text) an option, if there is text.
quoted = '$(subst ','\'',$(1))'
option = $(if $(2),$(1) $(call quoted,$(2)))
PAPERS = $(if $(PAPER),--paper $(foreach paper,$(PAPER),$(call quoted,$(paper))))
export MLFLOW_DISABLE_TELEMETRY := true
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup repro rehearse page docs test test-slow test-guides check check-plan sweep dashboard audit release bench ui sync doctor lock clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# An environment works only where it was made, and with the Python that it was made with: otherwise it is made again.
REMAKE := $(if $(wildcard $(VENV)/pyvenv.cfg),$(shell \
  made=$$(sed -n 's/^command = .* -m venv \(--[a-z-]* \)*//p' $(VENV)/pyvenv.cfg); \
  if ! test -x $(BIN)/python; then echo 'its Python is gone'; \
  elif test -n "$$made" && ! test "$$made" -ef $(VENV); then echo "it was made as $$made"; fi))

setup: $(VENV)/.installed  ## make .venv and install the locked versions

.PHONY: $(if $(REMAKE),$(VENV)/.installed)
$(VENV)/.installed: requirements.lock
	$(if $(REMAKE),@echo "making $(VENV) again: "$(call quoted,$(REMAKE)))
	@$(call quoted,$(PYTHON)) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Choose another with `make setup PYTHON=python3.12`.")'
	$(call quoted,$(PYTHON)) -m venv $(if $(REMAKE),--clear) $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@
	@$(BIN)/python -m stages.doctor || true

repro: setup  ## run everything that is not up to date, and print the claims (PAPER=maskalign, SEEDS=5, FORCE=1, PRESET=paper, JOBS=4, GPUS=0,1, LAUNCH='srun -N1 -n1')
	@$(BIN)/python -m stages.repro --preset $(call quoted,$(PRESET)) $(PAPERS) $(call option,--seeds,$(SEEDS)) \
	  $(if $(FORCE),--force) $(call option,--jobs,$(JOBS)) --gpus $(call quoted,$(GPUS)) --launch $(call quoted,$(LAUNCH))

rehearse: setup  ## run every stage of the preset `paper` for a moment, and say what the whole run needs (PAPER=maskalign, PRESET=tiny, MEMORY=24, JSON=1)
	@$(BIN)/python -m stages.rehearse --preset $(call quoted,$(PRESET)) $(PAPERS) $(call option,--memory,$(MEMORY)) $(if $(JSON),--json)

page: setup  ## write the page from the results on this machine, or from the committed verdicts if there are none (PRESET=paper)
	@$(BIN)/python -m stages.report --preset $(call quoted,$(PRESET))
	@echo data/report/$(call quoted,$(PRESET))/index.html

docs: setup  ## build the documentation as a site: guides, design, and a reference of the code
	@$(BIN)/mkdocs build --quiet
	@echo site/index.html

test: setup  ## run the quick tests on all cores (PAPER=maskalign: those of one paper)
	@$(BIN)/python -m pytest -n logical --dist worksteal $(PAPERS)

test-slow: setup  ## run the slow tests: whole pipelines, servers, killed processes (MINUTES=10: rehearse some papers only)
	@$(BIN)/python -m pytest -m slow -n logical --dist loadfile $(PAPERS) $(call option,--minutes,$(MINUTES))

test-guides: setup  ## type what the guides of the papers and the README say (more than 20 minutes; not in CI)
	@$(BIN)/python -m pytest -m guides -n logical --dist loadfile

check: setup check-plan  ## check formatting, lint, declared dependencies, and the plan with every configuration
	@$(BIN)/ruff format --check --quiet . || { echo 'run: $(BIN)/ruff format .'; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/deptry --no-ansi .

check-plan: setup
	@$(BIN)/python -m stages.check --preset $(call quoted,$(PRESET))

audit: setup  ## check that all committed locks belong to this code, and rerun a sample of the results (MINUTES=12)
	@$(BIN)/python -m stages.audit --preset $(call quoted,$(PRESET)) $(call option,--minutes,$(MINUTES))

release: setup  ## before you commit new locks: record what made them and how long it took, and update the README's table (PAPER=maskalign)
	@$(BIN)/python -m stages.release --preset $(call quoted,$(PRESET)) $(PAPERS)

bench: setup  ## measure speed and memory, as ratios within one run (PAPER=maskalign: one paper)
	@$(BIN)/python -m benchmarks $(PAPERS)

sweep: setup  ## search under a budget: committees against single models, or networks of a space (ARM='movinet-half movinet', SETTING=training or architecture, TASK, TRIALS, WORKERS=2, STUDY, STORAGE, MACHINES=slurm, DRY_RUN=1)
	@$(BIN)/python -m stages.study $(call quoted,$(ARM)) --preset $(call quoted,$(PRESET)) --setting $(call quoted,$(SETTING)) \
	  --machines $(call quoted,$(MACHINES)) --study $(call quoted,$(STUDY)) $(call option,--workers,$(WORKERS)) $(call option,--task,$(TASK)) \
	  $(call option,--trials,$(TRIALS)) $(call option,--storage,$(value STORAGE)) $(if $(DRY_RUN),--dry-run)

dashboard: setup  ## open optuna-dashboard for a study (PORT=8080, STUDY, STORAGE)
	@$(BIN)/python -m stages.ui --port $(call quoted,$(PORT)) --study $(call quoted,$(STUDY)) $(call option,--storage,$(value STORAGE))

ui: setup  ## open MLflow with all runs (PORT=5000)
	@$(BIN)/python -m stages.ui --port $(call quoted,$(PORT))

sync: setup  ## send runs to MLflow that it does not have yet
	@$(BIN)/python -m lightning_modules.tracking.mirror --flush

doctor: setup  ## check this environment and say what is wrong with it
	@$(BIN)/python -m stages.doctor

lock:  ## write requirements.lock from pyproject.toml
	$(BIN)/pip-compile --quiet --extra dev --strip-extras --allow-unsafe --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements.lock pyproject.toml
	@sed -i -e '/^#/d' -e 's/^\(torch==[0-9.]*\)+.*/\1/' requirements.lock

clean:  ## remove the pipeline's outputs, checkpoints, logs and trained seeds (not DVC's cache, MLflow's runs or downloads)
	rm -rf data/sources data/datasets data/runs data/curves data/results data/report .scratch/training .scratch/seeds .scratch/logs
