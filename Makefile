# Every target makes its own virtual environment in .venv and installs what it needs there.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check cluster-test bench faults gpu-check clean

demo: .venv/.installed
	$(BIN)/python -m tune_rescon.search --space digits --name demo-$$(date +%Y%m%d-%H%M%S)

# Those of a limit of two seconds run alone; the others two files at a time, in the order of tests/conftest.py,
# and one thread each, for more would only wait for each other. A worker that died is not replaced: xdist's next
# one repeats what it died of, or is waited for in vain.
test: .venv/.installed-dev
	$(BIN)/python -m pytest -m quick
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not quick and not hosts" \
	  --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# Hosts in namespaces, with sshd, and a cloud that lends them: as root. REQUIRE_HOSTS=1: they must run.
cluster-test: .venv/.installed-dev
	$(BIN)/python -m tests.cluster.enclosed

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.installed
	$(BIN)/python benchmarks/bench.py $(if $(IMAGES),--images "$(IMAGES)")

faults: .venv/.installed
	$(BIN)/python benchmarks/fault_storm.py

# Needs little of what is installed: a machine whose own Python has that, and perhaps no network, runs it as it is.
GPU_NEEDS := import torch, torchvision, pytorch_lightning
gpu-check:
	@if $(PYTHON) -c '$(GPU_NEEDS)' 2>/dev/null; then \
	  PYTHONPATH=. $(PYTHON) benchmarks/gpu.py $(if $(IMAGES),--images "$(IMAGES)"); \
	else \
	  $(MAKE) .venv/.installed && $(BIN)/python benchmarks/gpu.py $(if $(IMAGES),--images "$(IMAGES)"); \
	fi

clean:
	rm -rf .venv

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -m venv .venv || \
	  { echo "Python's venv module is needed (Debian and Ubuntu: apt install python3-venv)"; rm -rf .venv; exit 2; }

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
