# Rayvisor's tasks. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
# The steps share one .venv and two cores, and a guest's console needs the terminal to itself:
# with -j they still run one after the other.
.NOTPARALLEL:

# What may be set on the command line.
PYTHON :=
PYTEST_ARGS :=
SOAK_S := 600

BIN := .venv/bin
PY := $(BIN)/python
STEP := .ci/step
CORE := vmm/core/_native.abi3.so
CORE_SOURCES := $(wildcard vmm/core/*.c vmm/core/*.h)
CORE_TESTS := $(wildcard tests/guest/test_engine_*.py tests/unit/test_vcpu_*.py)
SANITIZED := build/sanitize

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# What pyproject.toml says the build needs. In .venv itself, so that `make native` is quick.
export BUILD_REQUIRES := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])

# That the core under test is the sanitized one and not the one built in place.
export EXPECT_SANITIZED := from rayvisor.vmm.core import _native as n; assert "$(SANITIZED)/" in n.__file__, n.__file__

.PHONY: help
help: ## list the targets
	@echo "usage: make TARGET [PYTHON=python3.12] [PYTEST_ARGS='-k uart'] [SOAK_S=600]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- Setting up -------------------------------------------------------------------------------

.PHONY: setup
setup: .venv/.installed native ## make .venv, install Rayvisor in it, build the native core
	@echo "Rayvisor is set up: $(BIN)/rayvisor --help"

# A stamp, written last: an interrupted installation is done again.
.venv/.installed: pyproject.toml setup.py
	@python=$$(.ci/prerequisites $(PYTHON)); \
	if ! [ -x $(PY) ]; then \
	    $(STEP) "Creating .venv ($$("$$python" --version))" "$$python" -m venv .venv; \
	fi
	@$(STEP) "Installing the build tools into .venv" $(PY) -m pip install -q $$($(PY) -c "$$BUILD_REQUIRES")
	@$(STEP) "Installing Rayvisor and what it needs into .venv" \
	    $(PY) -m pip install -q --no-build-isolation -e .
	@touch $@

.venv/.dev: .venv/.installed
	@$(STEP) "Installing the development tools into .venv" \
	    $(PY) -m pip install -q --no-build-isolation -e '.[dev]'
	@touch $@

.PHONY: native
native: .venv/.installed $(CORE) ## build the native core in place

# Order only: the installation builds the core too, and its stamp is newer than the core.
$(CORE): $(CORE_SOURCES) | .venv/.installed
	@$(STEP) "Building the native core" $(PY) setup.py -q build_ext --inplace
	@touch $@

.PHONY: image
image: native ## build the Debian guest image, unless it is there
	@$(BIN)/rayvisor image build debian

# --- Showing it -------------------------------------------------------------------------------

.PHONY: demo
demo: image ## move Debian between two local Ray hosts while it computes (ctrl-] leaves)
	@$(PY) -m rayvisor demo

.PHONY: monitoring
monitoring: image ## Debian's Prometheus on a local cluster, with our rules and alerts
	@.ci/monitoring $(BIN)

# --- Checking it ------------------------------------------------------------------------------

.PHONY: test
test: lint types pytest ## lint, types and every test

.PHONY: lint
lint: native .venv/.dev ## Ruff: rules and format
	@echo "Checking style (ruff)"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

.PHONY: types
types: native .venv/.dev ## mypy, strict
	@echo "Checking types (mypy)"
	@$(BIN)/mypy -p rayvisor
	@$(BIN)/mypy tests bench examples

.PHONY: pyright
pyright: native .venv/.dev ## the second type checker; fetches Node.js if there is none
	@$(BIN)/pyright

.PHONY: pytest
pytest: image .venv/.dev ## the tests alone
	@echo "Running the tests (pytest)"
	@$(BIN)/pytest $(PYTEST_ARGS)

# --capture=sys: a sanitizer writes to the process's own standard error, then ends it.
.PHONY: sanitize
sanitize: native .venv/.dev ## the core's tests under AddressSanitizer and UBSan
	@$(STEP) "Building the native core with sanitizers" \
	    env RAYVISOR_SANITIZE=1 $(PY) setup.py -q build \
	    --build-lib $(SANITIZED)/lib --build-temp $(SANITIZED)/obj
	@echo "Running the core's tests under the sanitizers"
	@export PYTHONPATH=$(SANITIZED)/lib PYTHONMALLOC=malloc \
	    LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1; \
	$(PY) -P -c "$$EXPECT_SANITIZED"; \
	$(PY) -P -m pytest -p no:cacheprovider --capture=sys $(CORE_TESTS) $(PYTEST_ARGS)

.PHONY: soak
soak: image .venv/.dev ## guests, random input, storms for SOAK_S seconds each; moves; failovers
	@.ci/soak $(SOAK_S) $(PYTEST_ARGS)
	@echo "User code under a storm, for $(SOAK_S) s"
	@$(PY) -m bench.ring3_storm --seconds $(SOAK_S)
	@echo "Moving a guest among three hosts, 300 times, with 50 kills"
	@$(PY) -m bench.soak_migration
	@echo "Letting the hosts of a fault tolerant guest fail, 200 times"
	@$(PY) -m bench.chaos_ft

.PHONY: fuzz
fuzz: native .venv/.dev ## each fuzz target for SOAK_S seconds
	@for target in tests/fuzz/fuzz_*.py; do \
	    echo "Running $$target for $(SOAK_S) s"; \
	    $(PY) "$$target" --seconds $(SOAK_S) --seed $$RANDOM; \
	done

# --- Measuring it -----------------------------------------------------------------------------

.PHONY: bench
bench: image ## every figure beside its peer, into bench/results/
	@$(PY) -m bench

.PHONY: clean
clean: ## remove what was built, but neither .venv nor the guest images
	rm -rf build dist *.egg-info vmm/core/*.so .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
