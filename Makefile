# Each target makes what it needs: Python 3.11+ and make are enough to begin.
PYTHON ?= python3
VENV ?= .venv
READY = $(VENV)/.installed
# Processes that the tests are run in, each of up to 3 GB.
WORKERS ?= 2
# What TensorFlow logs at its start would bury what a command prints.
export TF_CPP_MIN_LOG_LEVEL ?= 3
# ONNX Runtime would report its use to Microsoft.
export ORT_DISABLE_TELEMETRY ?= 1

.PHONY: demo test lint bench clean

demo: $(READY)
	$(VENV)/bin/keras-distill demo

test: $(READY)
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(READY)
	$(VENV)/bin/python benchmarks/step_overhead.py
	$(VENV)/bin/python benchmarks/hint_step.py
	$(VENV)/bin/python benchmarks/privileged_step.py
	$(VENV)/bin/python benchmarks/ensemble_cost.py
	$(VENV)/bin/python benchmarks/privileged_gain.py
	$(VENV)/bin/python benchmarks/transfer_set.py
	$(VENV)/bin/python benchmarks/quality_vs_keras.py
	$(VENV)/bin/python benchmarks/export_latency.py
	$(VENV)/bin/python benchmarks/export_memory.py
	$(VENV)/bin/python benchmarks/export_applications.py

$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
	  { echo "On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info demo-output
