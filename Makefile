# Everything runs in .venv, made on first use; it need not be activated.
PYTHON ?= python3
RUN := .venv/bin/python
WORKERS ?= logical

ifdef MEMCOURSE_DATA  # notebooks run in folders of their own, so a relative path is made absolute here
export override MEMCOURSE_DATA := $(if $(filter /%,$(MEMCOURSE_DATA)),,$(CURDIR)/)$(MEMCOURSE_DATA)
endif

.PHONY: help course test test-all hostile mutants notebooks bench reproduce environment

help: ## this list
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

course: environment ## set up, make your copy in my_course/ and open it in JupyterLab
	@.venv/bin/memcourse lab

test: environment ## style, types, tests and notebooks (minutes)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy memcourse
	$(RUN) -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal tests
	MEMCOURSE_SHAPE_CHECKS=0 $(RUN) -m pytest tests/bad_input
	$(RUN) -m pytest --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 120 chapters solutions
	$(RUN) -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout 120 exercises

test-all: test ## the same, then the slow tests (training, the wheel in an empty environment)
	$(RUN) -m pytest -m slow tests

hostile: environment ## grade more than 200 hostile submissions at every level of confinement (10 minutes)
	$(RUN) -m tests.hostile

mutants: environment ## break the solutions in about 900 ways, and see whether the checks notice (3 minutes)
	$(RUN) -m tests.mutants

notebooks: environment ## build chapters/, exercises/ and solutions/ from source/
	$(RUN) -m memcourse.course.build

bench: environment ## measure speed and memory against peers, which it installs
	$(RUN) -m pip install --no-deps --quiet -r benchmarks/peers.txt
	$(RUN) -m benchmarks

reproduce: environment ## train the bundled model and run every experiment again (about three hours)
	@$(RUN) experiments/bundled_model.py
	@set -e; for experiment in experiments/[0-9][0-9]_*.py; do echo "$$experiment"; $(RUN) "$$experiment"; done
	@$(RUN) experiments/readme_figure.py

# The environment, and a look whether it still belongs to this folder (a .venv that was moved or copied does not).
environment: .venv/installed
	@test "$$(cd / && "$(CURDIR)/$(RUN)" -c 'import importlib.util as u; print(u.find_spec("memcourse").origin)' 2>&1)" \
	    = "$(CURDIR)/memcourse/__init__.py" \
	    || { echo "The environment in .venv is broken or was moved. Remove it and try again: rm -rf .venv" >&2; exit 1; }

# The stamp is the last thing written: an interrupted install goes on next time.
.venv/installed: pyproject.toml constraints.txt
	@command -v "$(PYTHON)" > /dev/null \
	    || { echo "There is no '$(PYTHON)' here. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 11) or sys.exit(1)' \
	    || { echo "memcourse needs Python 3.11 or newer, and this is $$("$(PYTHON)" -V 2>&1). Name a newer one: make PYTHON=python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null \
	    || { echo "This Python has no venv or no pip to put in it (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@echo "Installing PyTorch, JupyterLab and the rest into .venv, in the versions of constraints.txt."
	@echo "This happens once: 2 to 10 minutes and about 2 GB (on Linux several GB more where pip's PyTorch brings CUDA)."
	@test -x .venv/bin/pip || "$(PYTHON)" -m venv .venv
	@$(RUN) -m pip install -c constraints.txt -e ".[dev]" \
	    || { echo "The installation stopped; what is there is kept. Run make again, or start afresh: rm -rf .venv" >&2; exit 1; }
	@touch $@
