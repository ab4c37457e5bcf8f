# make demo     collect data, train, plan closed-loop; writes runs/demo
# make test     everything that a change has to pass
# make develop  switch .venv to an editable install
# Each makes .venv when it is missing and installs pinned packages only when the pins changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PINS := requirements/pinned.txt
BASELINES := requirements/baselines.txt
ROOT := $(CURDIR)
CPP := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp tests/cpp/*.h tests/cpp/*.cpp bench/virtual_gpu/*.h)

ifeq ($(shell uname -s),Linux)
  export MUJOCO_GL ?= egl
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell getconf _NPROCESSORS_ONLN)
unexport PYTHONPATH

.DELETE_ON_ERROR:
.PHONY: demo test develop install lint types cpp-tests cpp-portability python-tests clean

demo: install
	$(BIN)/ttengine demo --out runs/demo

# in this order, cheapest first and pytest's own summary last
.NOTPARALLEL:
test: install lint cpp-tests types python-tests

# --- set-up ---

$(BIN)/python:
	sh requirements/system.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.pinned: $(PINS) $(BASELINES) requirements/system.sh pyproject.toml | $(BIN)/python
	sh requirements/system.sh $(BIN)/python
	$(BIN)/pip install --requirement $(PINS)
	$(BIN)/pip install --no-deps --requirement $(BASELINES)
	touch $@

# a wheel, not an editable install: what is run and tested is what a user gets
install: $(VENV)/.pinned
	rm -rf build/lib.* build/bdist.*  # setuptools would put files that are gone from the source into the wheel
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --force-reinstall .

develop: $(VENV)/.pinned
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .

# --- checks ---

lint: $(VENV)/.pinned
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)

cpp-tests: $(VENV)/.pinned
	$(BIN)/cmake --workflow --preset release
	$(BIN)/cmake --workflow --preset asan-ubsan
	$(BIN)/cmake --workflow --preset tsan
	$(MAKE) cpp-portability

# what this machine has no compiler for, and cannot install, is left out and named; what it can build has to pass
cpp-portability: $(VENV)/.pinned
	sh requirements/compilers.sh
	@if command -v clang++ >/dev/null; then \
	  pybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) $(BIN)/cmake --workflow --preset clang; \
	else echo "SKIPPED: build and tests with Clang; clang++ is not here"; fi
	@if ! command -v aarch64-linux-gnu-g++ >/dev/null; then \
	  echo "SKIPPED: build and tests for arm64; aarch64-linux-gnu-g++ is not here"; \
	elif command -v qemu-aarch64 >/dev/null || command -v qemu-aarch64-static >/dev/null; then \
	  $(BIN)/cmake --workflow --preset arm64; \
	else \
	  $(BIN)/cmake --preset arm64 && $(BIN)/cmake --build --preset arm64 && \
	  echo "SKIPPED: tests for arm64, which was built; qemu-aarch64 is not here"; \
	fi

# from an empty folder, so that the installed package is found and not the source beside this file
types: install
	empty=$$(mktemp -d) && cd $$empty && \
	  $(ROOT)/$(BIN)/mypy --config-file $(ROOT)/pyproject.toml --cache-dir $(ROOT)/.mypy_cache --package ttengine; \
	  status=$$?; rm -rf $$empty; exit $$status

# what times the wall first and alone, then all else on every core, each test with one thread but where it says more
PYTEST := TTENGINE_TEST_INSTALLED=1 OMP_NUM_THREADS=1 $(ROOT)/$(BIN)/python -m pytest -c $(ROOT)/pyproject.toml
python-tests: install
	empty=$$(mktemp -d) && cd $$empty && \
	  { $(PYTEST) -m alone $(ROOT)/tests; alone=$$?; } && \
	  $(PYTEST) -m "not alone" --numprocesses logical --maxprocesses 8 --dist worksteal $(ROOT)/tests; \
	  status=$$?; rm -rf $$empty; exit $$((alone | status))

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
