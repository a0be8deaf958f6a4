# Every target makes its own virtual environment in .venv and installs what it needs there.
PYTHON ?= python3
BIN := .venv/bin
# A search and its tests start hundreds of Python processes. Where the environment forbids writing bytecode (many
# container images do), each of them would compile this package again: an empty value allows it.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-all check dist docs docs-lint structure cluster-test cluster-smoke bench faults gpu-check clean

demo: .venv/.installed
	$(BIN)/python -m tune_rescon.search --space digits --name demo-$$(date +%Y%m%d-%H%M%S)

# Three processes for two cores, because a third of the tests' time is waiting: for Ray, MLflow, a browser. Each has
# one thread: more threads would only wait for each other. A file's tests stay together, the longest files come
# first (tests/conftest.py). A worker that died is not replaced: xdist's next one would repeat what it died of.
PROCESSES ?= 3
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile \
  --no-loadscope-reorder --max-worker-restart 0

# What guards every commit.
test: .venv/.installed-dev
	$(PYTEST) -m "not nightly and not hosts" $(ARGS)

# Everything. CONTRIBUTING.md says which changes need more of it than `make test`.
test-all: .venv/.installed-dev
	$(PYTEST) -m "not hosts" $(ARGS)
	$(BIN)/python -m tests.cluster.enclosed

# Hosts in namespaces, with sshd, and a cloud that lends them: as root. REQUIRE_HOSTS=1: they must run.
cluster-test: .venv/.installed-dev
	$(BIN)/python -m tests.cluster.enclosed

# One story of them: a cluster on two hosts is started, a search submitted, a worker loses its power, down.
cluster-smoke: .venv/.installed-dev
	$(BIN)/python -m tests.cluster.enclosed -m "hosts and not nightly"

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) docs-lint

# Habits of prose that make a reader stop, links of the README, and pages that are generated.
docs-lint: .venv/.installed-dev
	$(BIN)/python .ci/docs_lint.py
	$(BIN)/python .ci/reference_pages.py --check

# The site, in site/. A broken link or anchor fails. Not a part of `check`, which needs no package of mkdocs.
docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The wheel and the source distribution, in dist/, checked as the package index would.
dist: .venv/.installed-release
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

# The package's size and shape in numbers. `--list` names the places.
structure:
	@$(PYTHON) .ci/structure.py $(ARGS)

bench: .venv/.installed
	$(BIN)/python benchmarks/bench.py $(if $(IMAGES),--images "$(IMAGES)")

faults: .venv/.installed
	$(BIN)/python benchmarks/fault_storm.py

# Needs little of what is installed: a machine whose own Python has that, and perhaps no network, runs it as it is.
# PARTS="checkpoint first-step ..." runs parts of benchmarks/gpu_visit.py instead; some need all that is installed.
GPU_NEEDS := import torch, torchvision, pytorch_lightning
GPU_CHECK := benchmarks/$(if $(PARTS),gpu_visit.py --parts $(PARTS),gpu.py) $(if $(IMAGES),--images "$(IMAGES)")
gpu-check:
	@if $(PYTHON) -c '$(GPU_NEEDS)' 2>/dev/null; then \
	  PYTHONPATH=. $(PYTHON) $(GPU_CHECK); \
	else \
	  $(MAKE) .venv/.installed && $(BIN)/python $(GPU_CHECK); \
	fi

clean:
	rm -rf .venv

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -m venv .venv || \
	  { echo "Python's venv module is needed (Debian and Ubuntu: apt install python3-venv)"; rm -rf .venv; exit 2; }

# uv needs a tenth of pip's time; pip is there where uv is not to be had or does not get through. The bytecode
# is compiled at once: where the environment forbids writing it, each import would compile it again.
define install
	@echo "Installing $(1) into .venv: about 5 GB the first time, one to six minutes"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt uv || true
	@if ! $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --constraint constraints.txt --editable "$(2)"; then \
	  echo "uv did not succeed; trying pip"; \
	  $(BIN)/python -m pip install --constraint constraints.txt --editable "$(2)"; \
	fi
	@touch $@
endef

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(call install,tune_rescon,.)

.venv/.installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(call install,tune_rescon and what its tests need,.[dev])
	@touch .venv/.installed

.venv/.installed-release: .venv/bin/python pyproject.toml constraints.txt
	$(call install,tune_rescon and what checks its distributions,.[release])
	@touch .venv/.installed

.venv/.installed-docs: .venv/bin/python pyproject.toml constraints.txt
	$(call install,tune_rescon and what its documentation needs,.[docs])
	@touch .venv/.installed
