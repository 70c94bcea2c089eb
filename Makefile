# `make quickstart` and `make test` set up a virtual environment first; the second time they start at once.

SEED ?= 0
VENV ?= .venv
PYTHON ?=
JAX ?=
TORCH ?= torch==2.13.0 peft
# torch and what stands on it are only oracles of tests: the CPU build is enough, and PyPI's brings gigabytes of CUDA.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores < 4 ? cores : 4)))
ARGS ?=
# Programs that an earlier run of the tests has compiled, for this processor.
COMPILED = $(VENV)/compiled-$(shell grep -m1 ^flags /proc/cpuinfo 2>/dev/null | cksum | cut -d' ' -f1)

.PHONY: help quickstart test lint clean

help:
	@echo "make quickstart [SEED=0]   trains, evaluates and exports a tiny model on the CPU; see runs/quickstart"
	@echo "make test [ARGS=...]       runs the linter and the tests (ARGS go to pytest)"
	@echo "make lint                  runs the linter"
	@echo "make clean                 removes the virtual environments and caches; never runs/"

quickstart: $(VENV)/.installed
	$(VENV)/bin/videoauto quickstart seed=$(SEED) $(ARGS)

test: $(VENV)/.tests lint
	OMP_NUM_THREADS=1 JAX_COMPILATION_CACHE_DIR=$(abspath $(COMPILED)) JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.1 \
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .

clean:
	rm -rf .venv* build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

$(VENV)/.installed: setup.cfg pyproject.toml
	@python="$(PYTHON)"; [ -n "$$python" ] || python=$$(.ci/find-python 11) || { \
	  echo "This needs Python 3.11 or newer with venv, and found: $$(python3 --version 2>&1)." >&2; \
	  echo "On Debian or Ubuntu: apt-get install python3 python3-venv. Or name one: make PYTHON=/path/to/python3" >&2; \
	  exit 1; }; \
	echo "setting up $(VENV) with $$python (once, some minutes)"; \
	"$$python" -m venv $(VENV)
	$(VENV)/bin/python -m pip install -e '.[test]' $(JAX)
	@touch $@

$(VENV)/.tests: $(VENV)/.installed
	$(if $(TORCH),$(VENV)/bin/python -m pip install --retries 2 --extra-index-url $(TORCH_INDEX) $(TORCH))
	@touch $@
