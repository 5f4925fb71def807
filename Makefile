# make train | make test | make test-slow | make lint | make lock, each complete from a bare checkout.
#   PYTHON=python3.12                     interpreter of the virtual environment
#   ARGS="dataset=esc50 dataset.root=..." overrides for make train
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu   CPU-only PyTorch, a tenth of the download
PYTHON ?= python3
ARGS ?=
TORCH_INDEX ?=
VENV := .venv
RUN := $(VENV)/bin/python

# requirements.lock pins every package for one platform, with CUDA builds of PyTorch; elsewhere pip resolves the rest.
LOCKED_PLATFORM := linux x86_64 3.11
PLATFORM := $(shell $(PYTHON) -c 'import platform as p, sys; print(sys.platform, p.machine(), "%d.%d" % sys.version_info[:2])')
REQUIREMENTS := $(if $(TORCH_INDEX),requirements.txt,$(if $(filter-out $(PLATFORM),$(LOCKED_PLATFORM)),requirements.txt,requirements.lock))

.PHONY: train test test-slow lint lock

unexport PYTHONDONTWRITEBYTECODE  # without compiled modules, each program of the tests starts seconds later

train: $(VENV)/installed
	$(RUN) train.py $(ARGS)

test: $(VENV)/installed
	$(RUN) -m pytest -q -n auto --dist worksteal

test-slow: $(VENV)/installed
	$(RUN) -m pytest -q -m slow

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

lock: $(VENV)/installed
	$(RUN) -m pip install pip-tools==7.6.2
	CUSTOM_COMPILE_COMMAND="make lock" $(RUN) -m piptools compile --quiet --strip-extras --no-emit-index-url \
		--no-emit-find-links --no-emit-trusted-host --output-file requirements.lock requirements.txt

$(VENV)/installed: $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "error: $(PYTHON) is older than Python 3.11; set PYTHON=" && exit 1)
	$(PYTHON) -m venv $(VENV)
ifneq ($(TORCH_INDEX),)
	$(RUN) -m pip install --index-url $(TORCH_INDEX) $$(grep '^torch' requirements.txt)
endif
	$(RUN) -m pip install -r $(REQUIREMENTS)
	@touch $@
