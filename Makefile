# make train | make test | make test-slow | make lint, each complete from a bare checkout.
#   PYTHON=python3.12                     interpreter of the virtual environment
#   ARGS="dataset=esc50 dataset.root=..." overrides for make train
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu   CPU-only PyTorch, a tenth of the download
PYTHON ?= python3
ARGS ?=
TORCH_INDEX ?=
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: train test test-slow lint

train: $(VENV)/installed
	$(RUN) train.py $(ARGS)

test: $(VENV)/installed
	$(RUN) -m pytest -q -n auto --dist worksteal

test-slow: $(VENV)/installed
	$(RUN) -m pytest -q -m slow

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || (echo "error: $(PYTHON) is older than Python 3.10; set PYTHON=" && exit 1)
	$(PYTHON) -m venv $(VENV)
ifneq ($(TORCH_INDEX),)
	$(RUN) -m pip install --index-url $(TORCH_INDEX) $$(grep '^torch' requirements.txt)
endif
	$(RUN) -m pip install -r requirements.txt
	@touch $@
