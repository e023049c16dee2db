# Everything runs in .venv, made from the hash-pinned lock files. Needs Python 3.11+, git and make.

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { command -v "$$name"; break; }; done)

# A stamp carries the checksum of what was installed, so a changed lock installs again.
RUN_STAMP := $(VENV)/.run-$(shell cat requirements.lock pyproject.toml 2>/dev/null | cksum | tr ' ' '-')
DEV_STAMP := $(VENV)/.dev-$(shell cat requirements-dev.lock pyproject.toml 2>/dev/null | cksum | tr ' ' '-')
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCK_WITH := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --no-annotate

# Test processes, each with a PostgreSQL of its own.
JOBS ?= 2

.PHONY: help demo test lint bench simulate prove mutants lock clean
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(RUN_STAMP) ## start a complete meterd with sample customers and watch it enforce a plan
	@$(BIN)/python -m meterd demo $(ARGS)

test: $(DEV_STAMP) ## run the tests (ARGS="tests/unit -k quota" for some of them)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: $(DEV_STAMP) ## ruff, mypy and import-linter
	@failed=0; for check in "ruff check" "ruff format --check" mypy "lint-imports --no-logo"; do \
		echo "==> $$check"; $(BIN)/$$check || failed=1; done; exit $$failed

bench: $(DEV_STAMP) ## measure against what one would build instead, and write a report (a quarter of an hour)
	@$(BIN)/python -m tests.bench.report $(ARGS)

simulate: $(DEV_STAMP) ## break a simulated world in every way (SEEDS=0-999, or 17 to see one again)
	@$(BIN)/python -m tests.simulation.run "$(SEEDS)"

prove: $(DEV_STAMP) ## kill, freeze and race real processes, and write a report (ARGS=--help)
	@$(BIN)/python -m tests.crash.prove $(ARGS)

# A mutant may loop for ever, and no test of the core takes 20 seconds.
mutants: mutation/bin/mutmut ## change what counts and bills, one thing at a time, and see that a test notices
	@PYTEST_TIMEOUT=20 mutation/bin/mutmut run $(or $(ARGS),--max-children 1)
	@mutation/bin/mutmut results --all true | sed -n 's/^ *\(meterd[^:]*\)\.x[^:]*: /\1 /p' | sort | uniq -c

lock: ## pin again what pyproject.toml asks for (needs uv; UPGRADE=--upgrade for newer versions)
	@command -v uv >/dev/null || { echo "make lock needs uv: python3 -m pip install uv" >&2; exit 1; }
	$(LOCK_WITH) $(UPGRADE) --group build --output-file requirements.lock pyproject.toml
	$(LOCK_WITH) $(UPGRADE) --group dev --constraint requirements.lock \
		--output-file requirements-dev.lock pyproject.toml

clean: ## remove .venv and what tools left behind; data directories stay
	rm -rf $(VENV) mutation mutants build dist htmlcov .coverage .hypothesis
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find meterd tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip arrives last, so a half-made environment is made again.
$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "meterd needs Python 3.11 or newer and found none." >&2; \
		echo "Install it (Debian, Ubuntu: apt install python3 python3-venv), or name one:" >&2; \
		echo "  make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: ensurepip is missing." >&2; \
		echo "Debian and Ubuntu: apt install python3-venv, then run make again." >&2; exit 1; }
	@echo "==> making $(VENV) with $(PYTHON)"
	@rm -rf $(VENV) && "$(PYTHON)" -m venv $(VENV)

# The locks demand a hash of everything, so what is in none of them is installed by itself.
mutation/bin/mutmut: requirements-dev.lock
	@test -n "$(PYTHON)" && rm -rf mutation && "$(PYTHON)" -m venv mutation
	@mutation/bin/python -m pip install --quiet --require-hashes --only-binary :all: \
		-r requirements-dev.lock
	@mutation/bin/python -m pip install --quiet mutmut==3.8.1

# The development lock contains the other one, so an installation for tests serves the demo too.
$(RUN_STAMP): | $(BIN)/pip
	@if test ! -e $(DEV_STAMP); then \
		echo "==> installing what meterd needs (requirements.lock; once, about a minute)" \
		&& $(PIP) install --quiet --require-hashes --only-binary :all: -r requirements.lock \
		&& $(PIP) install --quiet --no-deps --no-build-isolation --no-index --editable .; fi
	@rm -f $(VENV)/.run-*; touch $@

$(DEV_STAMP): | $(BIN)/pip
	@echo "==> installing what the tests need (requirements-dev.lock; once, about a minute)"
	@$(PIP) install --quiet --require-hashes --only-binary :all: -r requirements-dev.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --no-index --editable .
	@rm -f $(VENV)/.dev-*; touch $@
