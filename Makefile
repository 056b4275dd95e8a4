# Each target makes what it needs. Only make and Python 3.11, 3.12 or 3.13 must be there.
PYTHON ?= python3
VENV ?= .venv
# These files record an installation: of the package, or of all that its tests need.
DEMO = $(VENV)/.installed-demo
DEV = $(VENV)/.installed-dev
# Python compiles what it imports. pip would compile all that it installs, of which a run
# imports a part: that took a third of the time of an installation.
PIP = $(VENV)/bin/python -m pip install --quiet --no-compile -c constraints.txt
UV = $(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python -c constraints.txt
DECLARED = setup.cfg pyproject.toml constraints.txt
# The number of processes that run the tests, each of up to 3 GB. It is one more than
# there are cores: some tests wait for servers and for processes that they kill.
WORKERS ?= 3
# The tests of code that runs on every backend of Keras. A merge needs the first part on
# JAX too; the others take as long again, and are run with `make test-jax-whole`.
NEUTRAL = tests/golden tests/distiller/test_every_backend.py tests/labels \
  tests/hints/test_losses.py tests/losses/test_compiled.py tests/guards/test_sums.py \
  tests/test_inputs.py tests/test_schedules.py tests/test_values.py
NEUTRAL_TOO = tests/losses tests/metrics tests/teachers tests/test_arguments.py \
  tests/test_callbacks.py \
  tests/earlier tests/distiller/test_distillation_loss_weights.py \
  tests/distiller/test_unlabelled_evaluation.py tests/online/test_peers.py \
  tests/online/test_peers_losses.py tests/online/test_peers_resume.py \
  tests/guards/test_look.py tests/guards/test_peers.py \
  tests/guards/test_against_student.py tests/guards/test_digits.py tests/sequence \
  tests/privileged tests/report tests/tuning tests/students \
  tests/targets/test_formats.py tests/targets/test_joining.py tests/targets/test_recording.py
# What is run with the oldest Keras of setup.cfg too: training, saving, several devices.
CORE = tests/devices/test_workers.py tests/distiller/test_fit.py \
  tests/distiller/test_equivalence.py tests/distiller/test_saving.py
OLDEST = $(abspath $(VENV))/oldest-keras
PYTEST = $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile \
  --no-loadscope-reorder
# TensorFlow's messages at its start would bury the output of a command.
export TF_CPP_MIN_LOG_LEVEL ?= 3
# Without this, ONNX Runtime reports its use to Microsoft.
export ORT_DISABLE_TELEMETRY ?= 1
# Otherwise each process would compile all modules that it imports.
unexport PYTHONDONTWRITEBYTECODE

# All examples but the files that they share.
SMOKE := $(patsubst %,smoke/%,$(shell grep -l "^def main" examples/*.py))

.PHONY: demo smoke $(SMOKE) test test-slow test-jax test-jax-whole test-oldest lint \
  docs notebooks requirements bench dist check-dist clean

demo: $(DEMO)
	$(VENV)/bin/keras-distill demo

smoke: $(SMOKE)

$(SMOKE): $(DEV)
	$(VENV)/bin/python $(@:smoke/%=%) --smoke

test: $(DEV)
	$(PYTEST) -m "not slow"

# Tests that take long and rarely find a fault, such as many kills at random moments.
test-slow: $(DEV)
	$(PYTEST) -m slow

ON_JAX = KERAS_BACKEND=jax $(PYTEST)

test-jax: $(DEV)
	$(ON_JAX) -m "not slow" $(NEUTRAL)

test-jax-whole: $(DEV)
	$(ON_JAX) $(NEUTRAL) $(NEUTRAL_TOO)

test-oldest: $(OLDEST)
	PYTHONPATH=$(OLDEST) $(VENV)/bin/python -c "import keras; print(keras.__version__)"
	PYTHONPATH=$(OLDEST) $(PYTEST) -m "not slow" $(CORE)

$(OLDEST): $(DEV)
	oldest=$$(sed -n 's/^ *keras>=//p' setup.cfg) && \
	$(VENV)/bin/python -m pip install --quiet --no-deps --target $@ "keras==$$oldest.*"

lint: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The site, in build/docs. A warning is an error: dead links and anchors, pages in no
# table of contents, public names that no page describes.
docs: $(DEV)
	$(VENV)/bin/python -m sphinx -q -W --keep-going -n -c docs . build/docs

# Runs the notebooks of the site and writes their outputs into their files.
notebooks: $(DEV)
	$(VENV)/bin/python docs/site/run_notebooks.py docs/notebooks/*.ipynb

# All requirements must have versions that fit together on each Python of setup.cfg.
requirements: $(DEV)
	for version in $$(sed -n 's/.*Python :: \(3\.[0-9]*\)$$/\1/p' setup.cfg); do \
	  echo "requirements on Python $$version"; \
	  $(VENV)/bin/uv pip compile --quiet --python-version $$version --extra dev \
	    -c constraints.txt pyproject.toml >/dev/null || exit 1; \
	done

bench: $(DEV) test-slow
	$(VENV)/bin/python benchmarks/step_overhead.py
	$(VENV)/bin/python benchmarks/hint_step.py
	$(VENV)/bin/python benchmarks/privileged_step.py
	$(VENV)/bin/python benchmarks/on_policy_step.py
	$(VENV)/bin/python benchmarks/ensemble_cost.py
	$(VENV)/bin/python benchmarks/remote_teacher.py
	$(VENV)/bin/python benchmarks/privileged_gain.py
	$(VENV)/bin/python benchmarks/audit_verdicts.py
	$(VENV)/bin/python benchmarks/privileged_logs.py
	$(VENV)/bin/python benchmarks/transfer_set.py
	$(VENV)/bin/python benchmarks/quality_vs_keras.py
	$(VENV)/bin/python benchmarks/search_demo.py
	$(VENV)/bin/python benchmarks/recorded_precision.py
	$(VENV)/bin/python benchmarks/report_cost.py
	$(VENV)/bin/python benchmarks/export_latency.py
	$(VENV)/bin/python benchmarks/export_memory.py
	$(VENV)/bin/python benchmarks/export_applications.py
	$(VENV)/bin/python benchmarks/recorded_epoch.py
	$(VENV)/bin/python benchmarks/recording.py
	$(VENV)/bin/python benchmarks/beam_recording.py
	$(VENV)/bin/python benchmarks/record_formats.py
	$(VENV)/bin/python benchmarks/killed_targets.py
	$(VENV)/bin/python benchmarks/killed_workers.py
	$(VENV)/bin/python benchmarks/demo_on_workers.py
	$(VENV)/bin/python benchmarks/scaling.py
	$(VENV)/bin/python benchmarks/large_vocabulary.py

# The sdist, and the wheel made from it: so no file of an earlier build gets into it.
dist: $(DEV)
	rm -rf dist
	$(VENV)/bin/python -m build --installer uv . >/dev/null

# Where no checkout is, as after `pip install`. `WHOLE=--whole` runs the whole demo.
check-dist: dist
	$(VENV)/bin/python .ci/check_dist.py $(WHOLE)

$(DEMO): $(VENV)/.made $(DECLARED)
	$(PIP) -e '.[demo]'
	@touch $@

# uv takes a fraction of pip's time, but doesn't read the mirrors in pip's configuration.
$(DEV): $(VENV)/.made $(DECLARED)
	$(PIP) uv
	$(UV) -e '.[dev]' || $(PIP) -e '.[dev]'
	@touch $@ $(DEMO)

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "TensorFlow has no release for this Python." \
	         "Take 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.13"; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
	  { echo "On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo-output
