# make quickstart   install, then draw pictures with the small model that ships
# make test         install what the tests need, then run the whole default suite, the kernels' suites among it
# make kernels      the kernels' suites alone: in Triton's interpreter, and compiled for GPUs that need not be there
# make lint         ruff, mypy --strict, import rules
# make bench        measure start-up and the ops beside their peers (BENCH="kernel ops")
# make gpu-check    on a GPU: is every kernel right, and how long it takes; elsewhere the same dry (GPU="--kind geglu")
# make docs         write docs/reference from the installed components
#
# PYTHON picks the interpreter (3.11 or later), PYTEST, BENCH and GPU add arguments: make test PYTEST="-m 'not slow'"

PYTHON ?= python3
PYTEST ?=
BENCH ?= kernel ops
GPU ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c requirements/dev.txt
SAYS := pyproject.toml requirements/dev.txt

.PHONY: quickstart test kernels lint bench gpu-check docs clean

quickstart: $(VENV)/installed
	$(BIN)/kolors run quickstart

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PYTEST)
ifeq ($(strip $(PYTEST)),)
	$(MAKE) kernels
endif

# Triton decides when it is imported whether it interprets or compiles, so each suite has a process of its own.
kernels: $(VENV)/installed-dev
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interpreter
	$(BIN)/python -m pytest tests/aot

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed-dev
	for name in $(BENCH); do $(BIN)/python -m benchmarks $$name || exit 1; done

SEES_A_GPU := import sys, torch; sys.exit(not torch.cuda.is_available())
GPU_RUNS := runs/gpu-check

gpu-check: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/gpu
	@dry=; $(BIN)/python -c "$(SEES_A_GPU)" || { dry=--dry; echo "torch sees no GPU: a dry run, which launches nothing"; }; \
	$(BIN)/python -m benchmarks gpu $$dry --json $(GPU_RUNS)/gpu.jsonl --plot $(GPU_RUNS)/gpu.png $(GPU)

docs: $(VENV)/installed
	$(BIN)/python scripts/write_reference.py

clean:
	rm -rf $(VENV)

# A stamp is newer than what it was installed from, so a second call installs nothing.
$(VENV)/installed: $(SAYS)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/installed-dev: $(SAYS) | $(VENV)/installed
	@echo "installing what tests and checks need"
	$(INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/installed
