# make demo   install, run the whole flow on the default params.yaml, and print the leaderboard
# make test   install, then check style, types and structure, and run the tests
# EXTRA=gpu   uses faiss-gpu instead of faiss-cpu; PYTHON=... names another Python 3.11

PYTHON ?= $(shell command -v python3.11 || command -v python3)
EXTRA ?= cpu
OTHER := $(if $(filter gpu,$(EXTRA)),cpu,gpu)
VENV := .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt

.PHONY: demo test

demo: $(VENV)/installed-$(EXTRA)
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@echo
	@cat data/report/leaderboard.txt
	@echo
	@echo "The report: data/report/index.html"

test: $(VENV)/installed-$(EXTRA)-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@# Two processes with one thread each, because the tests compute little. Files go in the order of their names: sorted
	@# by their number of tests, the longest file would come last.
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Both FAISS packages own the module `faiss`, so the other one is removed first.
$(VENV)/installed-$(EXTRA): $(VENV)/bin/python $(INPUTS)
	@rm -f $(VENV)/installed-*
	@if $(BIN)/python -m pip show --quiet faiss-$(OTHER) 2>/dev/null; then $(BIN)/python -m pip uninstall --yes faiss-$(OTHER); fi
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRA)]"
	@touch $@

$(VENV)/installed-$(EXTRA)-test: $(VENV)/installed-$(EXTRA)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRA),test]"
	@touch $@
