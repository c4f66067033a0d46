# Everything starts with `make quickstart`, `make flow` or `make test`; each installs what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/quickstart
FLOW ?= runs/flow

# On CPU: one device per core uses both cores; glibc keeps freed memory, in huge pages, instead of clearing it every step.
quickstart flow: export JAX_NUM_CPU_DEVICES ?= 2
quickstart flow: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=100000000000

.PHONY: quickstart flow test acceptance lint

$(BIN)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

$(BIN)/.installed-dev: $(BIN)/.installed requirements-dev.txt requirements-openmoji.txt
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

data/shapes/about.json: | $(BIN)/.installed
	$(BIN)/python -m janus_jax.prepare shapes --out=data/shapes

quickstart: $(BIN)/.installed data/shapes/about.json  ## data, tokenizer, three stages, evaluation, contact sheet
	$(BIN)/python -m janus_jax.train --config=configs/tiny.py --workdir=$(RUN)
	$(BIN)/python -m janus_jax.evaluate --checkpoint=$(RUN) --benchmark=shapes --data=data/shapes --out=$(RUN)

flow: $(BIN)/.installed data/shapes/about.json  ## the same with rectified flow (JanusFlow)
	$(BIN)/python -m janus_jax.train --config=configs/tiny_flow.py --workdir=$(FLOW)
	$(BIN)/python -m janus_jax.evaluate --checkpoint=$(FLOW) --benchmark=shapes --data=data/shapes --out=$(FLOW)

test: $(BIN)/.installed-dev  ## the test suite
	$(BIN)/python -m pytest -q -n 3 --dist loadscope --no-loadscope-reorder

acceptance: $(BIN)/.installed-dev  ## the slow tests, into docs/acceptance.md; resumes
	$(BIN)/python -m pytest -q -s -m slow -p tests.acceptance_page tests/test_acceptance.py

lint: $(BIN)/.installed-dev
	$(BIN)/ruff format --check . && $(BIN)/ruff check .
