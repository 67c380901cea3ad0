# make demo | test | bench | gpu: each does its own set-up. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
RESULTS_DIR ?= benchmarks/results
NATIVE := $(wildcard csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh csrc/*/*/*)

.PHONY: setup build test demo bench lint gpu gpu-build gpu-test gpu-bench gpu-train clean

setup: $(STAMP) build

$(STAMP): requirements-lock.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "strucfast needs Python 3.11 or newer; set PYTHON=" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-lock.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# Incremental: ninja rebuilds only what changed.
build: $(STAMP)
	@$(PY) setup.py --quiet build_ext --inplace

test: setup
	$(PY) -m pytest

demo: setup
	$(PY) -m strucfast demo

# STRUCFAST_FULL=1 make bench runs every size with every provider.
bench: setup
	@test "$$STRUCFAST_FULL" = 1 && echo "every size, every provider: much longer than the usual run" || echo "about 10 minutes on two cores; STRUCFAST_FULL=1 make bench runs every size with every provider"
	$(PY) -m pytest --benchmark

lint: setup
	$(PY) -m ruff check .

# The GPU half uses the interpreter that is there and downloads nothing.
gpu: gpu-build gpu-test gpu-bench gpu-train

gpu-build gpu-test gpu-bench gpu-train:
	RESULTS_DIR=$(RESULTS_DIR) $(PYTHON) benchmarks/gpu.py $(@:gpu-%=%)

clean:
	rm -rf build dist *.egg-info strucfast/*.so strucfast/_build_info.json
