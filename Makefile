# Everything a newcomer needs: `make demo` and `make test`. Both set up what they need, once, in $(VENV).

VENV ?= .venv
QGIS_VENV ?= .venv-qgis
BENCH_VENV ?= .venv-bench
# The first that runs and is new enough; a name on the PATH may be a shim for a version that is not there.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { command -v $$p; break; }; done)
# A package index with CPU builds of torch, for a small environment: make demo TORCH_INDEX=https://...
TORCH_INDEX ?=
DEMO ?= demo-out

BIN := $(VENV)/bin
DEPS := $(shell cat pyproject.toml Makefile | cksum | cut -d' ' -f1)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
export QGIS_VENV VENV

.PHONY: help demo test lint format bench plugin setup setup-dev clean
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: setup ## Set up, adapt on a made region, predict another, open $(DEMO)/index.html
	$(BIN)/cegate-geo demo -o $(DEMO)

test: export OMP_NUM_THREADS ?= 1 # toy models: threads only wait for each other
test: lint ## Set up, check style, types and contracts, run all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup-dev ## Check style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 qgis_plugin/cegate_geo_qgis
	$(BIN)/lint-imports --no-cache

format: setup-dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup-dev $(BENCH_VENV)/.deps-$(DEPS) ## Measure speed and memory beside GeoDeep and others, into docs/
	$(BIN)/python benchmarks/engine --geodeep $(BENCH_VENV)/bin/geodeep $(BENCH_ARGS) --make-args '$(BENCH_ARGS)'

# GeoDeep, pinned, so that figures can be compared; with scipy, which it uses where it is there.
$(BENCH_VENV)/.deps-$(DEPS): | $(BIN)/python
	@rm -rf $(BENCH_VENV)
	@$(BIN)/python -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile geodeep==0.9.13 scipy
	@touch $@

plugin: ## Build the QGIS plugin's zip into dist/
	$(PYTHON) qgis_plugin/package.py dist

setup: $(VENV)/.deps-$(DEPS) $(VENV)/.here-$(shell pwd | cksum | cut -d' ' -f1)
setup-dev: setup $(VENV)/.dev-$(DEPS)

# Some Debian machines have Python without its venv module: as root it is fetched, else the error says what to do.
$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is needed. Give one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null \
	  && $(PYTHON) -m venv $(VENV); } || \
	  { echo "$(PYTHON) -m venv fails. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 2; }

$(VENV)/.deps-$(DEPS): | $(BIN)/python
	@echo "Setting up $(VENV) (torch takes a minute or two, 6 GB) ..."
	@$(PIP) --upgrade "pip>=25.1"
ifneq ($(TORCH_INDEX),)
	@$(PIP) --index-url $(TORCH_INDEX) torch torchvision
endif
	@$(PIP) --editable ".[cpu,train,distributed]"
	@rm -f $(VENV)/.deps-* $(VENV)/.here-* $(VENV)/.dev-* && touch $@

# An environment that another checkout made is pointed here.
$(VENV)/.here-%: | $(VENV)/.deps-$(DEPS)
	@$(PIP) --no-deps --editable .
	@rm -f $(VENV)/.here-* && touch $@

$(VENV)/.dev-$(DEPS): | setup
	@$(PIP) --group lint --group test --editable ".[cpu,train,distributed,mask2former]"
	@rm -f $(VENV)/.dev-* && touch $@

clean: ## Remove what was built, environments included
	rm -rf $(VENV) $(QGIS_VENV) $(BENCH_VENV) $(DEMO) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
