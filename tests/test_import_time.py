"""Importing the package adds little to importing Keras: neither time nor a backend."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Importing Keras takes seconds, so that it is imported once, and each fork begins
# after it. Other processes of the machine don't count in the processor's time.
MEASURE = """
import keras, os, sys, time
sys.pycache_prefix = os.environ["BYTECODE"]
for _ in range(4):  # The first writes the bytecode, as pip does when it installs.
    if not (child := os.fork()):
        start = time.process_time()
        import keras_distill
        print(time.process_time() - start, flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("the import failed")
"""

# The packages that come with Keras, then those that this package adds.
LIST = """
import sys
import keras
assert keras.backend.backend() == "jax"
of_keras = set(sys.modules)
import keras_distill
added = {name.partition(".")[0] for name in set(sys.modules) - of_keras}
print(*sorted({name.partition(".")[0] for name in of_keras}))
print(*sorted(added))
"""


def run(code: str, backend: str, **environment: str) -> list[str]:
    """Run code in a process of its own and return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "KERAS_BACKEND": backend, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_import_costs_a_tenth_of_a_second_at_most(backend: str, tmp_path: Path) -> None:
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "BYTECODE": str(tmp_path)}
    first, *others = map(float, run(MEASURE, backend, **bytecode))
    assert len(others) == 3
    assert sorted(others)[1] <= min(0.1, first)


def test_on_jax_no_tensorflow_is_imported() -> None:
    of_keras, added = (set(line.split()) for line in run(LIST, "jax"))
    assert "jax" in of_keras
    assert "tensorflow" not in of_keras | added
    assert "torch" not in added
