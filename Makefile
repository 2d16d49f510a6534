# Everything a contributor runs. `make help` lists the targets; each sets up what it needs and does nothing twice.
#
#   make test                              its own environment in .venv, torch installed if missing
#   make test PYTHON=/path/to/bin/python   an environment you have; its torch is never replaced
#
# Variables
#   PYTHON        use this Python instead of .venv; only packages that it lacks are installed into it (torchvision, for
#                 the tests of its models, never)
#   BASE_PYTHON   Python (3.10 or newer) that creates .venv                            (python3)
#   TORCH         what pip installs where torch is missing                             (torch==2.13.0, the tested version)
#   WORKERS       parallel test processes                                              (auto: one per core)
#   PYTEST_ARGS   further arguments for pytest, e.g. PYTEST_ARGS="-k rms_norm -x"
#   STEPS         of `make native`: native, plain, asan, tsan                          (all)
#   DEMO_ARGS, COMPARE_ARGS, BENCH_ARGS   further arguments for the demos and the benchmark
#   OUT           `make gpu` copies its logs and results there
#   FULL          FULL=1 makes `make gpu` measure everything, in place of suite and sanitizers
# The build reads MAX_JOBS, FORCE_CUDA, CUDA_HOME and TORCH_CUDA_ARCH_LIST as torch.utils.cpp_extension does.

BASE_PYTHON ?= python3
TORCH ?= torch==2.13.0
WORKERS ?= auto
PYTEST_ARGS ?=
STEPS ?=
DEMO_ARGS ?=
COMPARE_ARGS ?=
BENCH_ARGS ?=

ifdef PYTHON
  ENVIRONMENT := given-python
  MODELS :=
else
  PYTHON := .venv/bin/python
  ENVIRONMENT := .venv/ready
  MODELS = models
endif

# Recipes run from any folder, with spaces in its path or not: targets are relative, commands are quoted.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
REQUIRE = "$(PYTHON)" scripts/requirements.py --torch "$(TORCH)" build
BUILD = "$(PYTHON)" scripts/build.py
HAS = { command -v $(1) || test -x "$${CUDA_HOME:-/usr/local/cuda}/bin/$(1)"; } >/dev/null

.PHONY: given-python help demo compare test build native cuda-check torch-versions gpu bench lint format clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 18
	@sed -n '/^# Variables/,/^$$/s/^# \{0,1\}//p' Makefile

given-python:
	@command -v "$(PYTHON)" >/dev/null || { echo "make: PYTHON=$(PYTHON) is not a program here" >&2; exit 1; }

.venv/ready:
	@"$(BASE_PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: $(BASE_PYTHON) is missing or older than Python 3.10; name a newer one with BASE_PYTHON=..." >&2; exit 1; }
	@echo "creating .venv"
	@"$(BASE_PYTHON)" -m venv .venv || { echo "make: could not create .venv (Debian, Ubuntu: apt install python3-venv); or give an environment with PYTHON=..." >&2; exit 1; }
	@touch $@

build: $(ENVIRONMENT)  ## build the extension in place
	@$(REQUIRE)
	@$(BUILD)

demo: $(ENVIRONMENT)  ## train three small networks with torch.nn's norms and with ours
	@$(REQUIRE) demo
	@$(BUILD)
	"$(PYTHON)" examples/train_digits.py $(DEMO_ARGS)

compare: $(ENVIRONMENT)  ## accuracy of seven norms and none by the size of the batches; COMPARE_ARGS="--quick" for a look
	@$(REQUIRE) demo
	@$(BUILD)
	"$(PYTHON)" examples/compare_norms.py $(COMPARE_ARGS)

test: $(ENVIRONMENT)  ## the whole test suite
	@$(REQUIRE) test $(MODELS)
	@$(BUILD)
	"$(PYTHON)" -m pytest -n $(WORKERS) $(PYTEST_ARGS)

native: $(ENVIRONMENT)  ## the CUDA kernels executed on the CPU: plainly, under sanitizers, with planted bugs
	@$(REQUIRE) test
	@if $(call HAS,nvcc); then $(call HAS,cuobjdump) || $(REQUIRE) cuobjdump; fi
	@$(BUILD)
	PYTHON="$(PYTHON)" tests/native/run.sh $(STEPS)

cuda-check: $(ENVIRONMENT)  ## compile every kernel with nvcc for all architectures; check registers, spills, accesses
	@$(call HAS,nvcc) || $(REQUIRE) nvcc
	@$(call HAS,cuobjdump) || $(REQUIRE) cuobjdump
	"$(PYTHON)" tests/native/cuda_check.py

torch-versions:  ## build and test against the oldest, the tested and the newest torch (downloads several GB)
	BASE_PYTHON="$(BASE_PYTHON)" scripts/torch_versions.sh

gpu: $(ENVIRONMENT)  ## on a machine with a GPU: build, suite, compute-sanitizer, benchmark, bench/results/<device>
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" OUT="$(OUT)" FULL="$(FULL)" scripts/gpu.sh

bench: $(ENVIRONMENT)  ## the benchmark, latencies, memory; results and an HTML page in bench/results/<device>
	@$(REQUIRE) bench
	@$(BUILD)
	"$(PYTHON)" -m bench run --output auto $(BENCH_ARGS)
	"$(PYTHON)" -m bench latency --baseline aten --output auto
	"$(PYTHON)" -m bench memory --output auto
	"$(PYTHON)" -m bench report "$$("$(PYTHON)" -m bench run --print-output-folder)"

lint: $(ENVIRONMENT)  ## ruff, mypy, clang-format
	@$(REQUIRE) lint
	"$(PYTHON)" -m ruff check .
	"$(PYTHON)" -m ruff format --check .
	"$(PYTHON)" -m mypy
	"$(PYTHON)" scripts/clang_format.py --check

format: $(ENVIRONMENT)  ## let ruff and clang-format rewrite the sources
	@$(REQUIRE) lint
	"$(PYTHON)" -m ruff check --fix .
	"$(PYTHON)" -m ruff format .
	"$(PYTHON)" scripts/clang_format.py

clean:  ## remove what was built (not .venv)
	rm -rf build dist demo_output torchfastnorm/_C*.so ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
