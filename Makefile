# Everything a newcomer needs: `make demo`, `make test`. Both install into .venv what is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint infra/constraints.txt

.PHONY: demo report docs test test-slow test-slow-ray test-slow-apart test-long test-s3 test-all check bench bench-check clean

demo: $(VENV)/installed
	$(BIN)/serpipe demo demo

AUDIO ?= demo/archive
STORE ?= labels

# From a clone and a folder of audio to a report; 3 means that too much is in quarantine, which the report shows.
report: $(VENV)/installed
	$(BIN)/serpipe label $(AUDIO) $(STORE) --segment vad || [ $$? -eq 3 ]
	$(BIN)/serpipe report $(STORE) --out report.html

docs: $(VENV)/installed-test
	$(BIN)/python -m sphinx --fail-on-warning --keep-going docs dist/docs

# Two processes: what runs on Ray in one, with one Ray, everything else in the other.
test: $(VENV)/installed-test check
	$(BIN)/python -m pytest --numprocesses 2 -m "not slow and not long and not s3"

test-slow: test-slow-ray test-slow-apart

SLOW := -m "slow and not long and not s3"
# Where slow tests start no Ray.
APART := tests/audio tests/infra tests/models

# One process: many of these start a cluster of their own, and are slower beside each other.
test-slow-ray: $(VENV)/installed-test
	$(BIN)/python -m pytest $(SLOW) $(APART:%=--ignore=%)

test-slow-apart: $(VENV)/installed-test
	$(BIN)/python -m pytest $(SLOW) $(APART)

# Run by hand: every crash pass in full, chaos, lost nodes, fine-tuning killed and resumed.
test-long: $(VENV)/installed-test
	$(BIN)/python -m pytest -m "long and not s3"

# Starts the store of infra/object-store by itself; as root it installs what that needs.
test-s3: $(VENV)/installed-test
	$(BIN)/python -m pytest -m s3

# What must pass before a change lands, with the programs that some tests need: as root on Debian it installs those that
# are missing. A real store answers slowly, so its tests run beside the slow ones; then those that start no Ray.
test-all:
	infra/programs
	$(MAKE) test
	$(MAKE) --jobs 2 --output-sync=target test-slow-ray test-s3 test-slow-apart

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Under ten minutes on two cores; nothing else should run meanwhile. `jobs/benchmark.py --help` has more.
bench: $(VENV)/installed
	$(BIN)/python jobs/benchmark.py --quick

# Fails where a ratio is more than 10 % below that of infra/benchmark.json, and is so twice more when measured again.
bench-check: $(VENV)/installed
	$(BIN)/python jobs/benchmark.py --quick --json benchmark.json --check

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: asked for by another package, pip would take a newer one.
$(VENV)/installed: $(VENV)/bin/python pyproject.toml infra/constraints.txt
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) demo
