# What a person or a pipeline runs; `make` alone lists it. Needs Python >= 3.11, a C compiler, make.

# The first suitable Python; 3.11 first because the tests are run with it most.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3 python3.14; do \
	"$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' \
		>/dev/null 2>&1 && command -v "$$name" && break; done)
VENV ?= .venv
GFX ?= gfx942
COMPAT_VERSIONS ?= 0.30.0 0.31.0 0.32.0
PATCH_VERSIONS ?= 0.30.0 0.31.0 0.32.0 0.33.0
PYTEST_ARGUMENTS ?=
# `--check` compares docs/fleet.md instead of writing it.
FLEET_ARGUMENTS ?=
BENCH_DEMO_ARGUMENTS ?=
# Two at a time: most of a test's time is one process importing vLLM. Whole files go to a worker, in
# the order of collection, so that fast ones come first and a file's servers are shared.
WORKERS ?= 2
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# A container may forbid Python to keep its compiled modules; then each of vLLM's four processes
# compiles 6000 files at every start, which doubles its time. .venv is ours to write to.
unexport PYTHONDONTWRITEBYTECODE
MAKE_ENVIRONMENT = "$(PYTHON)" tests/environment/make_environment.py

.DEFAULT_GOAL := help
.PHONY: help environment demo bench-demo test test-fast test-compat test-patches fleet startup-cost lint format clean python

help:  ## list the targets
	@echo "vllm-amdopt: make TARGET   (PYTHON=python3.12 and VENV=/path choose others)"
	@awk -F ':.*## *' '/^[a-z-]+:.*## / { printf "  %-14s%s\n", $$1, $$2 }' Makefile

python:
	@test -n "$(PYTHON)" || { echo "error: there is no Python 3.11 to 3.14 on PATH: install one, \
	or name it, for example \`make PYTHON=/opt/python3.12/bin/python3 demo\`." >&2; exit 1; }

environment: python  ## make .venv: vLLM for the CPU, the plugin, the tools (minutes, once)
	@$(MAKE_ENVIRONMENT) --venv "$(VENV)"

demo: environment  ## serve three models, stock and with the plugin, and compare (GFX=gfx950: an MI355X)
	@"$(VENV)/bin/python" -m benchmarks.demo --gfx "$(GFX)"

bench-demo: environment  ## show the measuring tools: noise, a 10 % slowdown, right and wrong answers (half an hour)
	@"$(VENV)/bin/python" -m benchmarks.bench_demo $(BENCH_DEMO_ARGUMENTS)

test: environment  ## run all tests, fast ones first
	@"$(VENV)/bin/python" -m pytest $(PARALLEL) $(PYTEST_ARGUMENTS)

test-fast: environment  ## run the tests that start neither a server nor the simulated fleet
	@"$(VENV)/bin/python" -m pytest --ignore=tests/integration --ignore=tests/fleet $(PARALLEL) $(PYTEST_ARGUMENTS)

test-compat: python  ## run the integration tests on each supported vLLM, in environments of their own
	@failed=; for version in $(COMPAT_VERSIONS); do \
		echo "== vLLM $$version"; \
		$(MAKE_ENVIRONMENT) --venv ".venv-vllm-$$version" --vllm "$$version" \
		&& ".venv-vllm-$$version/bin/python" -m pytest tests/integration tests/fleet tests/test_patches.py \
			--deselect tests/fleet/test_fleet.py::test_the_page_is_current $(PARALLEL) $(PYTEST_ARGUMENTS) \
		|| failed="$$failed $$version"; \
	done; \
	if [ -n "$$failed" ]; then echo "error: not passed on vLLM$$failed" >&2; exit 1; fi; \
	echo "passed on vLLM $(COMPAT_VERSIONS)"

test-patches: environment  ## hold the patches against the sources of every supported vLLM (downloads 1 GB)
	@"$(VENV)/bin/python" tests/environment/vllm_sources.py .cache/vllm-sources $(PATCH_VERSIONS)
	@VLLM_SOURCES="$(CURDIR)/.cache/vllm-sources" "$(VENV)/bin/python" -m pytest tests/test_patches.py $(PYTEST_ARGUMENTS)

fleet: environment  ## let vLLM configure every published model on simulated GPUs; writes docs/fleet.md
	@"$(VENV)/bin/python" -m tests.fleet.page $(FLEET_ARGUMENTS)

startup-cost: environment  ## measure what the plugin costs at start-up
	@"$(VENV)/bin/python" -m benchmarks.startup_cost

lint: environment  ## ruff and mypy
	@"$(VENV)/bin/ruff" check .
	@"$(VENV)/bin/ruff" format --check .
	@"$(VENV)/bin/mypy"

format: environment  ## let ruff write the layout and the simple repairs
	@"$(VENV)/bin/ruff" check --fix-only --quiet .
	@"$(VENV)/bin/ruff" format .

clean:  ## remove environments, caches and logs
	rm -rf .venv .venv.lock .venv-vllm-* .cache .pytest_cache .mypy_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
