# `make demo` and `make test` set up what they need in .venv; both are quick when it is there.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Where there is no GPU, a fixed torch comes first, so that no newer build with CUDA is drawn in.
TORCH ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo 'torch>=2.6' || echo torch==2.13.0)
DEMO = runs/crosslingual-maths

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "evomerge needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(VENV)/installed
	$(BIN)/evomerge run search_spaces/crosslingual-maths.yaml
	$(BIN)/evomerge run search_spaces/crosslingual-maths-random.yaml
	$(BIN)/python benchmarks/compare.py $(DEMO) runs/crosslingual-maths-random
	rm -rf $(DEMO)/best
	$(BIN)/evomerge export $(DEMO) $(DEMO)/best --pick best

test: $(VENV)/installed
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info
