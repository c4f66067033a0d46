# Two commands do everything: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/quickstart

.PHONY: quickstart test lint

$(BIN)/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

data/shapes/about.json: | $(BIN)/.installed
	$(BIN)/python -m janus_jax.prepare shapes --out=data/shapes

quickstart: $(BIN)/.installed data/shapes/about.json  ## data, tokenizer, three stages, evaluation, contact sheet
	$(BIN)/python -m janus_jax.train --config=configs/tiny.py --workdir=$(RUN)
	$(BIN)/python -m janus_jax.evaluate --checkpoint=$(RUN) --benchmark=shapes --data=data/shapes --out=$(RUN)

test: $(BIN)/.installed  ## the test suite
	$(BIN)/python -m pytest -q

lint: $(BIN)/.installed
	$(BIN)/ruff format --check . && $(BIN)/ruff check .
