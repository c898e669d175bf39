# `make demo` and `make test` each work as the first command after `git clone`.
# They need Python 3.11 to 3.13 with pip, and a network for the packages of the lock.

PYTHON ?= python3
UV ?= uv
WORKERS ?= 2

# `make venv EXTRA=cuda13 VENV=.venv-cuda13` builds one for a GPU.
VENV ?= .venv
EXTRA ?= dev
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(EXTRA)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate --no-emit-index-url
LOCKS := base dev cuda12 cuda13 tpu wandb

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-without-tf docs check format lock clean

help:  ## Show this list
	@sed -nE 's/^([a-z-]+): .*## (.*)/make \1\t\2/p' Makefile | expand -t 24

venv: $(INSTALLED)  ## Build .venv from the lock, hashes checked

# The back end comes first, so that later builds can do without a network of their own.
$(INSTALLED): requirements/build.lock requirements/$(EXTRA).lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	(3, 11) <= v <= (3, 13) or sys.exit("$(PYTHON) is Python %d.%d; pclseg needs " \
	"3.11 to 3.13: name one, such as `make PYTHON=python3.12`." % v)'
	@echo "Installing the packages of requirements/$(EXTRA).lock into $(VENV) ..."
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) --require-hashes -r requirements/build.lock
	$(PIP_INSTALL) --require-hashes --no-build-isolation -r requirements/$(EXTRA).lock
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(INSTALLED)  ## Train scratch against PCL on a phantom; results in demo/
	$(BIN)/python -m pclseg.cli.demo --out demo

test: $(INSTALLED)  ## Run the tests
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

test-without-tf: $(INSTALLED)  ## Run the tests as if TensorFlow were not installed
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --without-tensorflow

docs: $(INSTALLED)  ## Build the site of the documents into build/docs
	PYTHONPATH=. $(BIN)/python docs/site/build.py build/docs

check: $(INSTALLED)  ## Format, lint and types; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --level error --pythonpath $(BIN)/python

format: $(INSTALLED)  ## Format the code and sort the imports
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

lock:  ## Renew the locks (needs uv)
	$(LOCK) --group build --upgrade --output-file requirements/build.lock
	for name in $(LOCKS); do \
	    extra=; [ $$name = base ] || extra="--extra $$name"; \
	    $(LOCK) $$extra --upgrade --constraint requirements/build.lock pyproject.toml \
	        --output-file requirements/$$name.lock || exit 1; \
	done

clean:  ## Remove .venv, the demo and all caches
	rm -rf $(VENV) demo build dist *.egg-info .cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
