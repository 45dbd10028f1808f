# The Long-Tail Notes. `make help` lists the targets. Needs GNU make, a POSIX sh and Python 3.10 or later.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ltnotes-installed

# what `make book` runs the chapters on; IMBALANCE and SEED are the chapters' own where they are empty
DATASET ?= digits-lt
SCALE ?= tiny
IMBALANCE ?=
SEED ?=
CHAPTERS ?= build/chapters/$(DATASET)-$(SCALE)$(if $(IMBALANCE),-imbalance$(IMBALANCE))$(if $(SEED),-seed$(SEED))

# where the built book goes, and what its launch buttons point to
HTML ?= build/html
REPO ?= https://github.com/long-tail-notes/ltnotes
HUB ?= http://localhost:8000

# worker processes of the tests; each computes on one thread
WORKERS ?= 2
# Threads that wait for each other by spinning make training several times slower as soon
# as another process wants the same cores; waiting passively costs a tenth where none does.
export OMP_WAIT_POLICY ?= passive
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := book
.DELETE_ON_ERROR:
.PHONY: book html site test unit nbval rendered kills lint format lab bench bench-gpu bench-many lite-table browser setup clean help

## book: execute every chapter (DATASET=digits-lt SCALE=tiny), then build build/html/index.html from them
book: $(STAMP)
	$(BIN)/ltnotes chapters --dataset $(DATASET) --scale $(SCALE) $(if $(IMBALANCE),--imbalance $(IMBALANCE)) \
	  $(if $(SEED),--seed $(SEED)) --out $(CHAPTERS)
	@$(MAKE) --no-print-directory site EXECUTED=$(CHAPTERS)

## html: build build/html/index.html from the committed chapters, executing nothing
html: $(STAMP)
	@$(MAKE) --no-print-directory site EXECUTED=

# The book as it will be built is laid out in a folder of its own: book/, the executed
# chapters over it, REPO and HUB in its configuration. A failed build leaves the last good one.
site:
	@if [ -e $(HTML) ] && [ ! -f $(HTML)/index.html ]; then \
	  echo "HTML: got $(HTML), which holds something else than a book; allowed is a new folder" >&2; exit 2; \
	fi
	@rm -rf $(HTML).stage
	@mkdir -p $(dir $(HTML))
	@cp -R book $(HTML).stage
	@rm -rf $(HTML).stage/_build $(HTML).stage/.ipynb_checkpoints
	@if [ -n "$(EXECUTED)" ]; then \
	  for chapter in book/*.ipynb; do cp "$(EXECUTED)/$${chapter##*/}" $(HTML).stage/ || exit 1; done; \
	fi
	@sed -e 's|^  url: .*|  url: $(REPO)|' -e 's|^  jupyterhub_url: .*|  jupyterhub_url: $(HUB)|' \
	  book/_config.yml > $(HTML).stage/_config.yml
	@$(BIN)/jupyter-book config sphinx $(HTML).stage > $(HTML).stage/config.log || { cat $(HTML).stage/config.log; exit 1; }
	$(BIN)/python -m sphinx -W -n --keep-going -q -b html -d $(HTML).stage/_build/doctrees \
	  $(HTML).stage $(HTML).stage/_build/html
	@rm -rf $(HTML)
	@mv $(HTML).stage/_build/html $(HTML)
	@rm -rf $(HTML).stage $(HTML)/.buildinfo
	@echo "the book: $(HTML)/index.html"

## test: lint, unit tests, nbval over every chapter, and the built book in a browser
test: $(STAMP)
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory nbval
	@$(MAKE) --no-print-directory rendered

unit: $(STAMP)
	$(ONE_THREAD) $(PYTEST) -n $(WORKERS) tests --ignore tests/book

# Chapters train here from nothing: LTNOTES_HOME is a new folder, so no earlier run is read.
# They find the ledger of results beside them, as in book/.
nbval: $(STAMP)
	@rm -rf build/nbval build/nbval-home
	@mkdir -p build/nbval-home
	@set -e; cifar="$${LTNOTES_CIFAR:-../shared/data}"; \
	if [ -f "$$cifar/cifar10.zip" ]; then \
	  dataset=cifar10-lt; echo "nbval: chapters on cifar10-lt, a fifth of the images in $$cifar/cifar10.zip"; \
	  mkdir -p build/thin; $(BIN)/python -m tests.notebooks.thin "$$cifar/cifar10.zip" build/thin/cifar10.zip; \
	  $(BIN)/python -m data_prep cifar10 --imbalance 100 --source build/thin/cifar10.zip --out build/thin; \
	  LTNOTES_DATA="$(CURDIR)/build/thin"; export LTNOTES_DATA; \
	elif [ -n "$$LTNOTES_CIFAR" ]; then \
	  echo "LTNOTES_CIFAR: got $$cifar, which holds no cifar10.zip" >&2; exit 2; \
	else \
	  dataset=digits-lt; echo "nbval: no $$cifar/cifar10.zip and LTNOTES_CIFAR is not set: chapters on digits-lt"; \
	fi; \
	$(BIN)/ltnotes chapters --prepare-only --scale tiny --dataset $$dataset --out build/nbval; \
	if [ -d book/results ]; then cp -R book/results build/nbval/; fi; \
	LTNOTES_HOME="$(CURDIR)/build/nbval-home" $(ONE_THREAD) \
	  $(PYTEST) --nbval --nbval-cell-timeout 600 --dist loadscope -n $(WORKERS) build/nbval/*.ipynb

rendered: $(STAMP) browser
	$(PYTEST) tests/book

# Continuous integration gets a browser; elsewhere the tests that need one say that they were skipped.
browser:
	@if [ -n "$$CI" ] && [ -z "$$CHROMIUM" ] && ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null \
	  && ! command -v google-chrome >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium; \
	fi

## kills: kill a training, a preparation and a chapter before each of their file operations (minutes; CI tries some)
kills: $(STAMP)
	@set -e; for what in run prepare prepare-again chapter; do $(ONE_THREAD) $(BIN)/python -m tests.kills $$what 1; done

## lint: check style and formatting of code and notebooks
lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

## format: put them right where ruff can
format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

## lab: open the chapters in JupyterLab
lab: $(STAMP)
	$(BIN)/jupyter lab book

## bench: speed and memory on the CPU, as the table of the book's page on speed; COMMANDS=1 times make book and test, too
# Alone on a machine, threads that spin measure what the processor can do.
bench: export OMP_WAIT_POLICY = active
bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks --out book/speed/cpu $(if $(COMMANDS),--commands)

## bench-gpu: the same on a GPU, in under ten minutes
bench-gpu: $(STAMP)
	$(BIN)/python -m tests.benchmarks.gpu --out book/speed/gpu

## bench-many: what grids of reruns and images in files cost, for the same page
bench-many: $(STAMP)
	$(BIN)/python -m tests.benchmarks.files --out book/speed/files
	$(BIN)/python -m tests.benchmarks.grid --out book/speed/grid

## lite-table: all main recipes at the scale lite, as the tables of the book's page on it; hours, unless the run cache has them
lite-table: $(STAMP)
	$(BIN)/python -m tests.benchmarks.lite
	$(BIN)/python -m tests.benchmarks.lite --dataset cifar100-lt --seeds 0

## setup: create .venv and install, which the other targets do by themselves
setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or later is needed; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) \
	  || { echo "no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[book,features,course,cluster,test]"
	@touch $@

## clean: remove what was built; .venv, prepared data and finished runs stay
clean:
	rm -rf build .pytest_cache .ruff_cache

help:
	@sed -n 's/^## //p' Makefile
