# Each target makes what it needs: one virtual environment, .venv, shared by all.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests of one file stay together, since they share what they have prepared. More processes take longer to start.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

NOTEBOOKS := $(patsubst %.py,%,$(shell grep -l jupytext: notebooks/*.py))

.PHONY: demo docs notebooks test test-all mutants lint format bench bench-quick clean

demo: $(VENV)/installed  ## distil 50 digits and evaluate them (minutes); a second call continues or repeats
	# One thread: in networks this small more of them only wait for each other.
	OMP_NUM_THREADS=1 $(BIN)/pdd fit --config configs/recipe/digits_mtt.yaml --ckpt_path last --evaluation.protocols '[progressive]'
	OMP_NUM_THREADS=1 $(BIN)/pdd test --config configs/recipe/digits_mtt.yaml

docs: $(VENV)/installed  ## the site, in site/; a broken link or a missing reference is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(VENV)/installed  ## run the notebooks, and keep them with what they show (minutes)
	for notebook in $(NOTEBOOKS); do \
	  $(BIN)/jupytext --to ipynb $$notebook.py && \
	  OMP_NUM_THREADS=1 $(BIN)/python -m nbconvert --to notebook --execute --inplace $$notebook.ipynb || exit 1; \
	done

test: $(VENV)/installed  ## the quick tests, on all cores
	$(PYTEST)

test-all: $(VENV)/installed  ## all tests: also kill-and-resume and two processes
	$(PYTEST) -m "slow or not slow"

mutants: $(VENV)/installed  ## how many of 150 changes of the code the tests notice (half an hour): runs/mutants.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants --output runs/mutants.md

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed  ## time and memory of every method: Markdown and JSON in runs/benchmarks
	$(BIN)/python -m benchmarks --output runs/benchmarks

bench-quick: $(VENV)/installed  ## the same with small networks, in a minute or so
	$(BIN)/python -m benchmarks --size quick --output runs/benchmarks_quick

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev,docs]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache site
